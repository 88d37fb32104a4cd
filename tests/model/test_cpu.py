"""The workarounds for a CPU against plain code and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model import cpu, layers


@pytest.fixture(params=[False, True], ids=["rounded", "native"])
def native(request, monkeypatch):
    """Runs the test with both forms of the product, on any processor."""
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: request.param)


def rounded(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32), np.float64)


def operands(rows, inputs, columns):
    rng = np.random.default_rng(0)
    return rng.normal(size=(*rows, *inputs)), rng.normal(size=(*inputs, *columns)), rng.normal(size=(*rows, *columns))


SHAPES = [((2, 5), (8,), (6,)), ((2, 5), (8,), (4, 3)), ((2, 5), (4, 3), (8,)), ((7,), (8,), (6,))]
# Kernels with many rows and few columns, as they are or transposed, whose gradient is computed transposed.
TALL = [((2, 5), (12,), (4,)), ((2, 5), (4, 3), (2, 2)), ((7,), (40,), (3,)), ((7,), (3,), (40,))]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("rows", "inputs", "columns"), SHAPES)
def test_the_product_and_its_gradients_are_those_of_rounded_operands(rows, inputs, columns):
    x, kernel, upstream = operands(rows, inputs, columns)
    n = len(inputs)

    @jax.jit
    def run(x, kernel, upstream):
        y, pull = jax.vjp(lambda x, k: cpu.dot(x, k, n, "float32"), x, kernel)
        return y, *pull(upstream)

    y, to_x, to_kernel = run(*(jnp.asarray(v, d) for v, d in ((x, "bfloat16"), (kernel, "float32"), (upstream, None))))
    x, kernel, upstream = rounded(x), rounded(kernel), rounded(upstream)
    np.testing.assert_allclose(y, np.tensordot(x, kernel, n), rtol=1e-4, atol=1e-5)
    axes = [range(len(rows), upstream.ndim), range(n, kernel.ndim)]
    assert to_x.dtype == jnp.bfloat16
    np.testing.assert_allclose(to_x.astype(jnp.float32), np.tensordot(upstream, kernel, axes), rtol=2**-7, atol=1e-2)
    # The gradient of the kernel is not rounded to bfloat16: it is a sum over the batch, which needs float32.
    assert to_kernel.dtype == jnp.float32
    expected = np.tensordot(x, upstream, [range(len(rows)), range(len(rows))])
    np.testing.assert_allclose(to_kernel, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rows", "inputs", "columns"), [*SHAPES, *TALL, ((0, 5), (8,), (4, 3))])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_of_matrices_is_the_plain_one_of_other_backends(monkeypatch, rows, inputs, columns, transposed):
    if transposed and len(inputs) + len(columns) > 2:
        pytest.skip("only a matrix is given transposed")
    x, kernel, upstream = (jnp.asarray(v, jnp.float32) for v in operands(rows, inputs, columns))
    kernel = kernel.T if transposed else kernel

    def run(backend):
        monkeypatch.setattr(layers, "platform", lambda: backend)
        y, pull = jax.vjp(lambda x, k: layers.dot(x, k, len(inputs), transposed=transposed), x, kernel)
        return y, *pull(upstream)

    for ours, plain in zip(run("cpu"), run("tpu"), strict=True):
        assert ours.shape == plain.shape
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 64, 65])
def test_few_rows_are_multiplied_as_columns(monkeypatch, rows):
    """XLA exchanges the operands of a product that it takes to be the same, and the kernel is read in another order."""
    x, kernel, upstream = (jnp.asarray(v, jnp.float32) for v in operands((rows,), (8,), (400,)))

    def run(backend):
        monkeypatch.setattr(layers, "platform", lambda: backend)
        y, pull = jax.vjp(lambda x, k: layers.dot(x, k, transposed=True), x, kernel.T)
        return y, *pull(upstream)

    for ours, plain in zip(run("cpu"), run("tpu"), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-4)
    monkeypatch.setattr(layers, "platform", lambda: "cpu")
    compiled = jax.jit(lambda x, k: layers.dot(x, k, transposed=True)).lower(x, kernel.T).compile().as_text()
    assert (f"f32[400,{rows}]{{1,0}} dot(" in compiled) == (1 < rows <= 64)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_gradient_of_a_tall_kernel_is_a_wide_product_in_the_compiled_program(transposed):
    """A tall product takes twice the time, and XLA makes one of a wide product that is only transposed."""
    x, kernel = jnp.ones((80, 4 if transposed else 64)), jnp.ones((64, 4))

    def total(kernel):
        return jnp.sum(jnp.sin(cpu.dot(x, kernel, 1, None, transposed=transposed)))

    compiled = jax.jit(jax.grad(total)).lower(kernel).compile().as_text()
    assert "f32[4,64]{1,0} dot(" in compiled
    assert "f32[64,4]{1,0} dot(" not in compiled


@pytest.mark.parametrize("transposed", [False, True])
def test_a_tall_product_has_a_second_derivative(transposed):
    """Which Sophia's estimate of the curvature needs."""
    inputs, columns = (4, 12) if transposed else (12, 4)
    x, kernel = (jnp.asarray(v, jnp.float32) for v in operands((7,), (inputs,), (columns,))[:2])

    def second(product):
        def total(kernel):
            return jnp.sum(jnp.sin(product(kernel)))

        return jax.grad(lambda kernel: jnp.sum(jax.grad(total)(kernel) ** 2))(kernel.T if transposed else kernel)

    given = (lambda k: x @ k.T) if transposed else (lambda k: x @ k)
    ours = second(lambda k: cpu.dot(x, k, 1, None, transposed=transposed))
    np.testing.assert_allclose(ours, second(given), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("native")
def test_the_result_has_the_dtype_that_was_asked_for():
    x, kernel = jnp.ones((2, 4), jnp.bfloat16), jnp.ones((4, 3))
    assert cpu.dot(x, kernel, 1, None).dtype == jnp.bfloat16
    assert cpu.dot(x, kernel, 1, "float32").dtype == jnp.float32


@pytest.mark.usefixtures("native")
def test_the_product_is_the_same_when_its_rows_are_sharded():
    x, kernel, upstream = (jnp.asarray(v, jnp.float32) for v in operands((8, 5), (8,), (6,)))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    @jax.jit
    def run(x, kernel, upstream):
        y, pull = jax.vjp(lambda x, k: cpu.dot(x, k, 1, None), x, kernel)
        return y, *pull(upstream)

    alone = run(x, kernel, upstream)
    together = run(jax.device_put(x, split), kernel, jax.device_put(upstream, split))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fence_changes_no_bit_and_no_gradient(dtype):
    x = jax.random.normal(jax.random.key(0), (64,)).astype(dtype)
    positions = jnp.arange(3)[None]
    assert jnp.array_equal(cpu.fence(x, positions), x)
    assert jnp.array_equal(jax.vjp(lambda x: cpu.fence(x, positions), x)[1](x)[0], x)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_a_repeated_array_is_the_sum_over_its_copies(count, dtype):
    rng = np.random.default_rng(0)
    x, upstream = (jnp.asarray(rng.normal(size=(n, 2, 5)), dtype) for n in (1, count))
    expected = np.asarray(upstream, np.float64).sum(0, keepdims=True)
    y, pull = jax.vjp(lambda x: cpu.repeated(x, count), x)
    np.testing.assert_array_equal(y.astype(jnp.float32), np.repeat(np.asarray(x, np.float32), count, axis=0))
    (found,) = pull(upstream)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=1e-6 if dtype == "float32" else 0.05)
    # Members of a population have arrays of their own.
    several = jax.vmap(jax.grad(lambda x: jnp.sum(cpu.repeated(x, count) * upstream)))(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(several.astype(jnp.float32), np.stack([expected] * 2), atol=0.05)


def test_an_update_that_is_not_good_leaves_the_arrays():
    old = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2), jnp.bfloat16)}

    @jax.jit
    def run(good, old):
        return cpu.updated_if(good, lambda: jax.tree.map(lambda x: x + jnp.nan, old), old)

    for good in (True, False):
        found = run(jnp.bool_(good), old)
        assert all(bool(jnp.isnan(x).all()) == good for x in jax.tree.leaves(found))
        assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, old)
        if not good:
            jax.tree.map(np.testing.assert_array_equal, found, old)
