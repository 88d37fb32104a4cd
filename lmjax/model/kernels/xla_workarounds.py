"""Workarounds for XLA on every backend; those for a CPU alone are in lmjax/model/cpu.py."""

import functools

import jax
import jax.numpy as jnp


@jax.custom_batching.custom_vmap
def unknown_zero(arrays: list[jax.Array]) -> jax.Array:
    """Returns int32 0, computed from `arrays` so that XLA does not know that it is 0.

    It is the minimum of 0 and the bits of an absolute value, which as an integer are not negative. Added to the start
    of a block of queries, it makes the block depend on what was computed before. Without it, XLA runs independent
    blocks at the same time, with the scores of all of them in memory; and it merges the scores of the backward pass
    with those of the forward pass, and keeps them in memory between. With jax 0.10.2 on a CPU, the gradient of 1,024
    causal positions (4 heads of width 16, float32) needs 6.9 MiB of temporaries; with a constant 0 it needs 20.3 MiB,
    and with `jax.lax.optimization_barrier` 29.3 MiB. To remove this, set `row` to `span.start` in `softmax.py`.
    """
    bits = (jax.lax.bitcast_convert_type(jnp.abs(x[(0,) * x.ndim]).astype(jnp.float32), jnp.int32) for x in arrays)
    return functools.reduce(jnp.minimum, bits, jnp.int32(0))


@unknown_zero.def_vmap
def _one_for_all_models(size: int, batched: list[list[bool]], arrays: list[jax.Array]) -> tuple[jax.Array, bool]:
    """Returns one 0 for all models of a `vmap`; with one 0 for each, every slice would become a gather."""
    return unknown_zero([x[0] if many else x for x, many in zip(arrays, batched[0], strict=True)]), False
