"""Stochastic rounding for updates of parameters that are stored in bfloat16.

Adjacent bfloat16 numbers differ by up to 1/128 of their value. With rounding to the nearest, every update below half of
that is lost, which at usual learning rates is nearly every update. If a sum is instead rounded up with a probability
equal to its remainder, its mean is exact (Gupta et al. 2015, arXiv:1502.02551, section 3). A float32 copy beside the
bfloat16 parameters would also work, but takes more memory than parameters in float32, which need no copy.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def add_updates(params: PyTree, updates: PyTree, key: jax.Array) -> PyTree:
    """Returns `params + updates` in the dtypes of `params`; bfloat16 parameters are rounded stochastically.

    Args:
        params: in float32 or bfloat16.
        updates: in float32.
        key: the key of the rounding, the same on all replicas; float32 parameters do not use it.
    """
    leaves, tree = jax.tree.flatten(params)

    def add(number: int, param: jax.Array, update: jax.Array) -> jax.Array:
        total = param.astype(jnp.float32) + update
        return total if param.dtype == jnp.float32 else stochastic_round(total, jax.random.fold_in(key, number))

    numbered = zip(range(len(leaves)), leaves, tree.flatten_up_to(updates), strict=True)
    return tree.unflatten(add(*leaf) for leaf in numbered)


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """Returns float32 `x` in bfloat16, rounded up or down at random so that the mean is `x`.

    bfloat16 is the upper 16 bits of float32. A random 16-bit number is added, so the lower 16 bits carry into the upper
    ones with a probability of their value over 2**16.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    carried = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type(carried & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
