"""What is special to the CPU: products of matrices, and a fence between unrolled layers. Other backends run plain code.

Found by measuring; experiments/README.md has the figures.
"""

import functools
import math
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


def dot(x: jax.Array, kernel: jax.Array, dims: int, out_dtype: str | None, *, transposed: bool = False) -> jax.Array:
    """Returns the product of `layers.dot`, computed as one of two matrices, and so are its derivatives.

    With more dimensions XLA writes down the transpose of the kernel, of the cotangent or of the kernel's gradient for
    most of the products of a training step.
    """
    rows, inputs = x.shape[: x.ndim - dims], x.shape[x.ndim - dims :]
    columns = kernel.shape[:1] if transposed else kernel.shape[dims:]
    assert inputs == (kernel.shape[1:] if transposed else kernel.shape[:dims]), (x.shape, kernel.shape, dims)
    left = x.reshape(math.prod(rows), math.prod(inputs))
    right = kernel if transposed else kernel.reshape(math.prod(inputs), math.prod(columns))
    if x.dtype == jnp.bfloat16:
        y = _rounded_product(left, right.T if transposed else right).astype(out_dtype or x.dtype)
    else:
        contract = (((1,), (1 if transposed else 0,)), ((), ()))
        y = jax.lax.dot_general(left, right.astype(x.dtype), contract, preferred_element_type=out_dtype)
    return y.reshape(*rows, *columns)


@jax.custom_vjp
def _rounded_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the product of two matrices, rounded to bfloat16, in float32.

    The plain product would ask for results in bfloat16, which XLA computes at half the speed of sums in float32; and
    its derivative would multiply a float32 by a bfloat16 matrix, which no fast kernel does. The gradient of a float32
    matrix stays in float32.
    """
    return _product(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))


def _forward(a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rounded_product(a, b), (a, b)


def _backward(saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = saved
    upstream = cotangent.astype(jnp.bfloat16)
    to_a = _product(upstream, b.astype(jnp.bfloat16).T)
    to_b = _product(a.astype(jnp.bfloat16).T, upstream)
    return to_a.astype(a.dtype), to_b.astype(b.dtype)


_rounded_product.defvjp(_forward, _backward)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the float32 product of two bfloat16 matrices."""
    contract = (((1,), (0,)), ((), ()))
    if not has_bfloat16():
        # Rounded, then multiplied in float32: the same numbers, by the fastest product that this processor has.
        return jax.lax.dot_general(a.astype(jnp.float32), b.astype(jnp.float32), contract)
    # A transposed operand would miss the fast kernel; a transposed result has no kernel at all, and fails as it runs.
    a, b = (with_layout_constraint(jnp.asarray(x), Layout((0, 1))) for x in (a, b))
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
