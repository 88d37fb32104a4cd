"""What is special to the CPU: products in bfloat16, and a fence between unrolled layers. Other backends run plain code.

Found by measuring; experiments/README.md has the figures.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


@functools.cache
def has_bfloat16() -> bool:
    """Returns whether this machine's processor multiplies bfloat16 numbers itself."""
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def bfloat16_dot(x: jax.Array, kernel: jax.Array, dims: int, out_dtype: str | None) -> jax.Array:
    """Returns the product of `layers.dot`, its operands rounded to bfloat16, its sums in float32.

    The plain product would ask for results in bfloat16, which XLA computes at half the speed of sums in float32; and
    its derivative would multiply a float32 by a bfloat16 matrix, which no fast kernel does. The kernel's gradient
    stays in float32.
    """
    inputs = x.shape[x.ndim - dims :]
    rows, columns = x.shape[: x.ndim - dims], kernel.shape[dims:]
    assert inputs == kernel.shape[:dims], (x.shape, kernel.shape, dims)
    y = _product(_matrix(x, len(rows)), _matrix(kernel, dims))
    return y.reshape(*rows, *columns).astype(out_dtype or x.dtype)


def _forward(
    x: jax.Array, kernel: jax.Array, dims: int, out_dtype: str | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return bfloat16_dot(x, kernel, dims, out_dtype), (x, kernel)


def _backward(
    dims: int, out_dtype: str | None, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del out_dtype
    x, kernel = saved
    rows = x.ndim - dims
    upstream = _matrix(cotangent, rows)
    to_x = _product(upstream, _matrix(kernel, dims).T).reshape(x.shape)
    to_kernel = _product(_matrix(x, rows).T, upstream).reshape(kernel.shape)
    return to_x.astype(x.dtype), to_kernel.astype(kernel.dtype)


bfloat16_dot.defvjp(_forward, _backward)


def _matrix(x: jax.Array, rows: int) -> jax.Array:
    """Returns `x` as bfloat16 `[product of its first dimensions, product of the others]`."""
    count = functools.reduce(int.__mul__, x.shape[:rows], 1)
    return x.astype(jnp.bfloat16).reshape(count, -1)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the float32 product of two bfloat16 matrices."""
    contract = (((1,), (0,)), ((), ()))
    if not has_bfloat16():
        # Rounded, then multiplied in float32: the same numbers, by the fastest product that this processor has.
        return jax.lax.dot_general(a.astype(jnp.float32), b.astype(jnp.float32), contract)
    # A transposed operand would miss the fast kernel; a transposed result has no kernel at all, and fails as it runs.
    a, b = (with_layout_constraint(x, Layout((0, 1))) for x in (a, b))
    y = jax.lax.dot_general(a, b, contract, preferred_element_type=jnp.float32)
    return with_layout_constraint(y, Layout((0, 1)))


def fence(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns `x`: divided by a 1 that the compiler does not know.

    Without it XLA fuses the sum of all earlier layers' residual branches into every later norm, work that grows with
    the square of the depth; no optimization barrier keeps it from that.

    Args:
        x: the residual stream before a layer.
        positions: any numbers that are not negative, which the compiler does not know.
    """
    one = jnp.where(positions.ravel()[0] < 0, 2, 1)
    return x / one.astype(x.dtype)
