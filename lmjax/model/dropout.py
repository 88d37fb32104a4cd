"""Dropout with traced rates, and the random numbers of its masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.streams import hash_key

Generator = Literal["threefry", "hash"]


@flax.struct.dataclass
class DropoutRates:
    """The dropout rates of one call. They are traced, so that a changed rate needs no new compilation.

    Each is a float32 scalar, or None for no dropout, which is compiled out. `DropoutRates()` has no dropout at all.
    The generator of the masks is static.
    """

    residual: jax.Array | None = None
    attention: jax.Array | None = None
    mlp: jax.Array | None = None
    output: jax.Array | None = None
    layer: jax.Array | None = None
    generator: Generator = flax.struct.field(pytree_node=False, default="threefry")

    def key(self, key: jax.Array) -> jax.Array:
        """Returns a key of JAX's own generator as a key of the generator of the masks."""
        return hash_key(key) if self.generator == "hash" else key


def dropout(
    x: jax.Array, rate: jax.Array | None, make_rng: Callable[[str], jax.Array], *, rows: bool = False
) -> jax.Array:
    """Returns `x` with each element dropped with probability `rate` and the others scaled by 1 / (1 - rate).

    Args:
        x: activations of any shape.
        rate: a traced scalar, or None: `x` itself, and no random number is drawn.
        make_rng: the `make_rng` of the calling module.
        rows: drop whole rows of the batch instead of elements (stochastic depth).
    """
    if rate is None:
        return x
    keep = 1.0 - rate
    shape = (x.shape[0],) + (1,) * (x.ndim - 1) if rows else x.shape
    kept = jax.random.bernoulli(make_rng("dropout"), keep, shape)
    return jnp.where(kept, x * (1.0 / keep).astype(x.dtype), jnp.zeros((), x.dtype))
