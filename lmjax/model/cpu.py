"""Workarounds for XLA on a CPU: products of matrices (`dot`), a barrier between layers (`fence`), scans, updates.

Other backends run plain code. Each docstring has the gain, and how to remove the workaround. Measured with
jax 0.10.2; experiments/README.md, "A training step beside transformers on torch", has more figures.
"""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

# Kernels with so many rows for each column, and at most so many columns, have their gradient computed transposed.
_TALL, _NARROW = 3, 256
# A scan over so many layers at most is compiled without a loop: steps of GPT-2 and BERT-base take 0.94 and 0.91 of the
# time and 0.88 and 0.96 of the memory (2026-11-30; compiled for the first time, GPT-2 starts about 10 s later).
MOST_UNROLLED = 16
# So many rows, and at least two, are multiplied as columns.
_FEW = 64


@functools.cache
def has_bfloat16() -> bool:
    """Returns whether the processor of this machine has instructions for products of bfloat16 numbers."""
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def dot(x: jax.Array, kernel: jax.Array, dims: int, out_dtype: str | None, *, transposed: bool = False) -> jax.Array:
    """Returns the product as `layers.dot`, computed as a product of two matrices; its derivatives are computed so too.

    With more dimensions (heads), XLA writes transposes of the kernel, the cotangent or the kernel's gradient to memory
    for most products of a training step. With matrices, steps of T5-small and BERT-base are 4 and 5 % faster, and
    their temporaries are 7 to 10 % smaller (2026-11-22). To remove this, delete the branch for a CPU in `layers.dot`.
    """
    rows, inputs = x.shape[: x.ndim - dims], x.shape[x.ndim - dims :]
    columns = kernel.shape[:1] if transposed else kernel.shape[dims:]
    assert inputs == (kernel.shape[1:] if transposed else kernel.shape[:dims]), (x.shape, kernel.shape, dims)
    left = x.reshape(math.prod(rows), math.prod(inputs))
    right = kernel if transposed else kernel.reshape(math.prod(inputs), math.prod(columns))
    if x.dtype == jnp.bfloat16:
        y = _rounded_product(left, right.T if transposed else right).astype(out_dtype or x.dtype)
    elif transposed and 1 < left.shape[0] <= _FEW and _on_one_device():
        y = product_of_few(left, right.astype(x.dtype), out_dtype)
    elif _is_tall(*right.shape):
        y = _tall_product(left, right.astype(x.dtype), transposed).astype(out_dtype or x.dtype)
    else:
        contract = (((1,), (1 if transposed else 0,)), ((), ()))
        y = jax.lax.dot_general(left, right.astype(x.dtype), contract, preferred_element_type=out_dtype)
    return y.reshape(*rows, *columns)


def product_of_few(x: jax.Array, kernel: jax.Array, out_dtype: str | None) -> jax.Array:
    """Returns the product of a few rows `[rows, inputs]` with the transpose of a kernel `[outputs, inputs]`.

    Computed as the transpose of kernel times rows, which reads the kernel in its stored order: for `[3072, 768]` and 8
    rows at 23 in place of 13 GB per second, for `[768, 3072]` at 26 in place of 10 (two cores, Zen 4, 2026-11-29; the
    machine reads 31). The barrier is there because XLA would exchange the operands again. To remove this, delete the
    branch in `dot`.
    """
    y = jax.lax.dot_general(kernel, x, (((1,), (1,)), ((), ())), preferred_element_type=out_dtype)
    return jax.lax.optimization_barrier(y).T


def _is_tall(rows: int, columns: int) -> bool:
    """Returns whether `_tall_product` is faster."""
    return rows >= _TALL * columns and columns <= _NARROW and _on_one_device()


def _on_one_device() -> bool:
    """Returns whether no mesh splits the product: there a barrier would add collectives."""
    return jax.sharding.get_abstract_mesh().size <= 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tall_product(a: jax.Array, kernel: jax.Array, transposed: bool) -> jax.Array:
    """Returns the product of a matrix with a kernel (`transposed`: with its transpose) that has many rows, few columns.

    The kernel's gradient is computed as the transpose of a wide matrix: XLA's product into a tall one runs at half the
    speed. Processor time for float32 `[2048, 2048].T` times `[2048, 128]`: 13.0 against 23.1 ms; `[768, 512].T` times
    `[768, 128]`: 1.3 against 2.0 ms; with 768 columns there is no difference (Zen 4, 2026-11-29). The barrier is there
    because XLA would merge the transpose with the product again. To remove this, delete the branch in `dot`.
    """
    return a @ (kernel.T if transposed else kernel)


def _tall_forward(a: jax.Array, kernel: jax.Array, transposed: bool) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _tall_product(a, kernel, transposed), (a, kernel)


def _tall_backward(
    transposed: bool, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, kernel = saved
    wide = a.T @ cotangent if transposed else cotangent.T @ a
    return cotangent @ (kernel if transposed else kernel.T), jax.lax.optimization_barrier(wide).T


_tall_product.defvjp(_tall_forward, _tall_backward)


@jax.custom_vjp
def _rounded_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the float32 product of two matrices, after rounding them to bfloat16.

    XLA computes a product with results in bfloat16 at half the speed of one with results in float32: 116 against 55 ms
    for `[1024, 768]` times `[768, 3072]` on two shared cores with AVX512-BF16 (2026-11-28). Derivatives by autodiff
    would multiply a float32 by a bfloat16 matrix, at the same half speed (100 ms), so they are written out below. The
    gradient of a float32 matrix stays float32. To remove this, use the other branch of `dot` for bfloat16 too.
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
        # Without bfloat16 instructions the fastest product is that in float32; the rounded numbers stay the same.
        return jax.lax.dot_general(a.astype(jnp.float32), b.astype(jnp.float32), contract)
    # The layouts are fixed, because XLA has a fast kernel only for untransposed operands (56 against 134 ms for the
    # product above with `b` given transposed), and a transposed result fails at run time.
    a, b = (with_layout_constraint(jnp.asarray(x), Layout((0, 1))) for x in (a, b))
    y = jax.lax.dot_general(a, b, contract, preferred_element_type=jnp.float32)
    return with_layout_constraint(y, Layout((0, 1)))


def fence(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns `x`, divided by a number that is always 1, which the compiler cannot know.

    Without it, XLA fuses the sum of the residual branches of all earlier layers into every norm, and computes it again
    there, work that grows with the square of the depth. `jax.lax.optimization_barrier` does not prevent this. The fence
    saves 11 % of the time for GPT-2's layers, forward and backward (7.14 to 6.39 s), and 24 % of their compilation (9.4
    to 7.1 s). With 24 layers of width 64, the compiled gradient reads and writes 163 MB with the fence, and 238 MB
    without it or with the barrier. To remove this, delete its call in `transformer.Stack`.

    Args:
        x: the residual stream before a layer.
        positions: any array of numbers that are not negative and not known to the compiler.
    """
    one = jnp.where(positions.ravel()[0] < 0, 2, 1)
    return x / one.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def repeated(x: jax.Array, count: int) -> jax.Array:
    """Returns `x` `[1, ...]` as `[count, ...]`; its gradient is computed as a product with ones.

    XLA's sum over the first dimension takes 40 ms for six arrays `[8, 8, 128, 128]`, and the product 2 ms (T5-small's
    bias of relative positions; two cores, Zen 4, 2026-11-29). To remove this, delete its calls.
    """
    return jnp.broadcast_to(x, (count, *x.shape[1:]))


def _repeated_forward(x: jax.Array, count: int) -> tuple[jax.Array, None]:
    return repeated(x, count), None


def _repeated_backward(count: int, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.dot_general(jnp.ones((1, count), cotangent.dtype), cotangent, (((1,), (0,)), ((), ()))),)


repeated.defvjp(_repeated_forward, _repeated_backward)


def updated_if(good: jax.Array, applied: Callable[[], Any], old: Any) -> Any:
    """Returns the tree of arrays `applied()` if `good`, and else `old`, whose memory the result can take.

    With `jnp.where` on every array, XLA computes new parameters from the moments before the update, whose memory the
    new moments already have: it copies all moments in every step. For 14 matrices of 2048 x 2048 with Adam's update
    that took 221 in place of 150 ms, and the copies their memory (two cores, Zen 4, 2026-11-29). Other backends fuse
    the three results of an update into one loop. To remove this, delete its call in `training.step`.
    """
    return jax.lax.cond(good, applied, lambda: old)


def scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """Returns what `jax.lax.scan` returns; each slice of `xs` is cut out once, at the end of the iteration before.

    XLA fuses a slice into every loop that reads it, which then computes for each of its elements where the slice
    begins. In the nano decoder's step, scanned over batches, the loops that read positions and segments took three
    times as long, and a step 78 in place of 69 ms (two cores, Zen 4, 2026-11-30). For the members of a population,
    whose slices are parameters that products read, there is no difference. To remove this, delete its call in
    `training.scans`.
    """
    count = len(jax.tree.leaves(xs)[0])

    def at(index: jax.Array) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), xs)

    def body_and_next(both: tuple[Any, Any], index: jax.Array) -> tuple[tuple[Any, Any], Any]:
        carry, y = body(*both)
        return (carry, at(jnp.minimum(index + 1, count - 1))), y

    (carry, _), ys = jax.lax.scan(body_and_next, (carry, at(jnp.int32(0))), jnp.arange(count))
    return carry, ys
