"""Kernels as integers: the nearest ones, with a scale for each output, and read by every module as numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.groups import DropoutRates
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameter_paths import is_hidden_matrix, matrix_shape
from lmjax.model.parameters import flat, unboxed
from lmjax.model.presets import PRESETS
from lmjax.model.quantized import Quantized, quantize_layers, quantized, rounded_layers

TINY = {"vocab_size": 48, "embed_dim": 16, "num_heads": 2, "mlp_dim": 24, "num_layers": 2, "max_length": 32}
EXPERTS = {"moe": {"num_experts": 3, "top_k": 2}}
CASES = pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("decoder", {"scan_layers": True}),
        ("decoder", {"scan_layers": False, **EXPERTS}),
        ("encoder", {"scan_layers": False}),
        ("encoder_decoder", {"scan_layers": True, "num_kv_heads": 1}),
    ],
)


@pytest.fixture(params=[0])
def made(request, architecture, fields):
    model = LanguageModel(PRESETS[f"nano_{architecture}"].with_fields(TINY | fields))
    return model, unboxed(init_params(model, jax.random.key(request.param)))


def batch_of(model, length=8):
    tokens = jax.random.randint(jax.random.key(1), (2, length), 1, 48)
    ones, places = jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(length), tokens.shape)
    return {
        f"{side.prefix}{name}": x
        for side in model.config.family.sides
        for name, x in (("tokens", tokens), ("segment_ids", ones), ("positions", places))
    }


@CASES
def test_the_integers_are_the_nearest_and_each_output_has_a_scale(made):
    _, params = made
    kept = jax.tree.leaves_with_path(quantize_layers(params), is_leaf=lambda x: isinstance(x, Quantized))
    kept = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in kept}
    chosen = {path for path, x in kept.items() if isinstance(x, Quantized)}
    assert chosen == {path for path in flat(params) if is_hidden_matrix(tuple(path.split("/")))}
    assert any("mlp" in path or "moe" in path for path in chosen)
    for path, x in flat(params).items():
        if path not in chosen:
            np.testing.assert_array_equal(kept[path], x)
            continue
        matrices = np.asarray(x, np.float64).reshape(matrix_shape(tuple(path.split("/")), x.shape))
        step = np.abs(matrices).max(axis=1, keepdims=True) / 127
        assert kept[path].values.dtype == jnp.int8
        assert kept[path].scales.size == step.size, f"{path}: a scale for each output of each matrix"
        found = np.asarray(kept[path].astype("float32"), np.float64).reshape(matrices.shape)
        np.testing.assert_allclose(found, np.round(matrices / step) * step, atol=1e-6)
        assert (np.abs(found - matrices) <= step * 0.5001).all()


@CASES
def test_a_model_of_integers_computes_what_their_numbers_do(made):
    model, params = made
    batch = batch_of(model)

    def loss(params, x):
        hidden = model.apply({"params": params}, batch, DropoutRates(), method="states")
        return jnp.sum(jnp.sin(x * hidden))

    of = jax.jit(jax.value_and_grad(loss, argnums=1))
    np.testing.assert_allclose(of(quantize_layers(params), 1.0), of(rounded_layers(params), 1.0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_passes_through_to_the_input(dtype):
    from lmjax.model.layers import dot

    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(rng.normal(size=(3, 4)), dtype), jnp.asarray(rng.normal(size=(4, 2, 5)), "float32")
    whole = quantized(kernel, (0,))
    weights = rng.normal(size=(3, 2, 5))
    found = jax.grad(lambda x: jnp.sum(dot(x, whole).astype("float32") * weights))(x)
    numbers = np.asarray(whole.astype("float32"), np.float64)
    np.testing.assert_allclose(
        found,
        np.einsum("bho,iho->bi", weights, numbers),
        rtol=2e-5 if dtype == "float32" else 0.05,
        atol=1e-5 if dtype == "float32" else 0.1,
    )


def test_a_column_of_zeros_stays_zero():
    whole = quantized(jnp.zeros((4, 3)).at[0, 0].set(2.0), (0,))
    np.testing.assert_array_equal(whole.astype("float32"), np.zeros((4, 3)) + 2.0 * (np.arange(12).reshape(4, 3) == 0))


def test_the_backward_pass_keeps_integers_and_makes_the_numbers_anew():
    """What is kept for the backward pass of many layers has no kernel in floating point."""
    from lmjax.model.layers import dot

    kernels = [quantized(jax.random.normal(jax.random.key(i), (16, 16)), (0,)) for i in range(3)]

    def f(x):
        for kernel in kernels:
            x = jnp.sin(dot(x, kernel))
        return x.sum()

    _, pull = jax.vjp(f, jnp.ones((2, 16)))
    kept = [x for x in jax.tree.leaves(pull) if getattr(x, "shape", ()) == (16, 16)]
    assert kept
    assert all(x.dtype == jnp.int8 for x in kept)
