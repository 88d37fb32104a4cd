"""Updates of parameters that are stored in bfloat16, rounded up or down at random.

Neighbours in bfloat16 are up to 1/128 of a number apart. Rounded to the nearest, an update below half of that is lost,
and at usual learning rates nearly all are; rounded up with the probability of its remainder, its mean is kept (Gupta et
al. 2015, arXiv:1502.02551, section 3). A float32 copy beside the parameters would do too, but the two take more memory
than parameters in float32, which need no copy.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def add_updates(params: PyTree, updates: PyTree, key: jax.Array) -> PyTree:
    """Returns `params + updates` in the dtypes of `params`; what is in bfloat16 is rounded stochastically.

    Args:
        params: in float32 or bfloat16.
        updates: in float32.
        key: draws the roundings, the same on all replicas; float32 parameters draw nothing.
    """
    leaves, tree = jax.tree.flatten(params)

    def add(number: int, param: jax.Array, update: jax.Array) -> jax.Array:
        total = param.astype(jnp.float32) + update
        return total if param.dtype == jnp.float32 else stochastic_round(total, jax.random.fold_in(key, number))

    numbered = zip(range(len(leaves)), leaves, tree.flatten_up_to(updates), strict=True)
    return tree.unflatten(add(*leaf) for leaf in numbered)


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """Returns float32 `x` in bfloat16: one of its two neighbours, and in the mean `x` itself.

    bfloat16 is the upper half of float32: what the lower half is, over 2**16, is the probability of a carry.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    carried = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type(carried & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
