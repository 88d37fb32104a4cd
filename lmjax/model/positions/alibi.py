"""ALiBi: a fixed bias on attention scores, linear in the distance (Press et al. 2022, arXiv:2108.12409)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.axes import sequence_ways
from lmjax.model.positions.by_distance import ByDistance
from lmjax.model.positions.scheme import Bias, Scheme

if TYPE_CHECKING:
    from lmjax.model.config import ModelConfig


class Alibi(Scheme):
    """A bias on attention scores with a slope for each head."""

    counts_heads: ClassVar[bool] = True

    def bias(self, config: ModelConfig, name: str, *, causal: bool) -> Bias:
        """Returns the function from positions to the bias; arguments as of `Scheme.bias`."""
        del name, causal

        def bias(queries: jax.Array, keys: jax.Array | None = None) -> jax.Array | ByDistance:
            length = queries.shape[1]
            if keys is None and sequence_ways() > 1:
                distances = jnp.arange(1 - length, length)[None]
                return ByDistance(alibi(config.num_heads, jnp.zeros((1, 1), jnp.int32), distances)[0, :, 0])
            slots = jnp.arange(length)[None]
            return alibi(config.num_heads, *((slots, slots) if keys is None else (queries, keys)))

        return bias


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Returns float64 `[heads]`: 2**(-8 i / heads), i from 1 (Press et al. 2022, arXiv:2108.12409, section 3).

    If the number of heads is not a power of two, as in the authors' code: the slopes for the next lower power, then
    every other slope for the next higher power.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    below, above = (2.0 ** (-8 * np.arange(1, n + 1) / n) for n in (power, 2 * power))
    return np.concatenate([below, above[::2][: num_heads - power]])


def alibi(num_heads: int, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns float32 `[batch or 1, heads, queries, keys]`: minus slope times absolute distance.

    Args:
        num_heads: number of query heads.
        queries: positions of the queries, `[batch or 1, queries]`.
        keys: positions of the keys, `[batch or 1, keys]`.
    """
    distance = jnp.abs(keys[:, None, :] - queries[:, :, None]).astype(jnp.float32)
    return -distance[:, None] * jnp.asarray(alibi_slopes(num_heads), jnp.float32)[None, :, None, None]
