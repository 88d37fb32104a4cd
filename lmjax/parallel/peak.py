"""The peak number of floating-point operations per second of a device."""

import functools
import time

import jax
import jax.numpy as jnp

from lmjax.parallel.chips import chip_of
from lmjax.streams import prng_key


def peak_flops() -> float | None:
    """Returns the peak FLOP/s of one device, or None for a device that is not in the table.

    It is the datasheet's in bfloat16; on a CPU, that of a measured float32 matrix product.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        return _measured_flops()
    chip = chip_of(device.device_kind)
    return chip and chip.flops


def peak_flops_together() -> float | None:
    """Returns the peak FLOP/s of all devices together, or None if it is not known."""
    peak = peak_flops()
    # The devices of a CPU share its cores.
    return peak and peak * (1 if jax.default_backend() == "cpu" else jax.device_count())


@functools.cache
def _measured_flops(size: int = 1536, repeats: int = 3) -> float:
    """Returns the best FLOP/s of a few square matrix products on all cores; measured once per process."""
    x = jax.random.normal(prng_key(0, "peak"), (size, size), jnp.float32)
    return product_flops(x, x, repeats)


def product_flops(left: jax.Array, right: jax.Array, repeats: int) -> float:
    """Returns the best FLOP/s of a few products of two matrices `[rows, inner]` and `[inner, columns]`."""
    product = jax.jit(jnp.matmul)
    product(left, right).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(left, right).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * left.size * right.shape[1] / best
