"""Kernels as integers: the nearest ones, with a scale for each output, and read by every module as numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model import layers
from lmjax.model.codes import FORMS, normal_float, packed, unpacked
from lmjax.model.dropout import DropoutRates
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameter_paths import is_hidden_matrix, matrix_shape
from lmjax.model.parameters import flat, unboxed
from lmjax.model.presets import PRESETS
from lmjax.model.quantized import (
    QuantizationConfig,
    Quantized,
    in_full,
    integer_dot,
    quantize_layers,
    quantized,
    rounded_layers,
)

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


def test_kernels_that_are_codes_already_stay_as_they_are():
    tree = {"backbone": {"stack": {"layer_0": {"mlp": {"up": {"kernel": jnp.ones((4, 6)) / 3}}}}}}
    codes = quantize_layers(tree, QuantizationConfig(weights="int4"))
    for again in (quantize_layers(codes), rounded_layers(codes)):
        jax.tree.map(np.testing.assert_array_equal, again, codes)


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


def reference(kernel, weights, group):
    """Rounding to the nearest code in float64."""
    inputs = kernel.shape[0]
    groups = kernel.reshape(inputs // group, group, -1)
    most = {"int8": 127, "int4": 7, "nf4": 1, "fp8": 448}[weights]
    scale = np.abs(groups).max(1, keepdims=True) / most
    x = groups / scale
    if weights == "nf4":
        levels = normal_float().astype(np.float64)
        found = levels[np.abs(x[..., None] - levels).argmin(-1)]
    elif weights == "fp8":
        # Three bits of mantissa; below 2**-6 the steps stay the same.
        step = 2.0 ** (np.maximum(np.floor(np.log2(np.maximum(np.abs(x), 2.0**-9))), -6) - 3)
        found = np.round(x / step) * step
    else:
        found = np.round(x)
    return (found * scale).reshape(kernel.shape)


@pytest.mark.parametrize("group", [0, 4])
@pytest.mark.parametrize("weights", FORMS)
def test_each_form_rounds_to_its_nearest_code(weights, group):
    kernel = np.random.default_rng(0).normal(size=(12, 2, 5))
    found = quantized(jnp.asarray(kernel, "float32"), (0,), QuantizationConfig(weights=weights, group=group))
    assert found.shape == kernel.shape
    assert found.values.nbytes == kernel.size * FORMS[weights].bits // 8
    expected = reference(kernel.reshape(12, 10), weights, group or 12).reshape(kernel.shape)
    np.testing.assert_allclose(found.astype("float32"), expected, atol=1e-6)


def test_the_values_of_nf4_are_those_of_its_paper():
    """Dettmers et al. 2023, appendix E, to four digits."""
    expected = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407,
                0.5626, 0.7230, 1.0]  # fmt: skip
    np.testing.assert_allclose(normal_float(), expected, atol=6e-5)


def test_codes_of_four_bits_come_back_from_their_pairs():
    codes = jnp.asarray(np.arange(-8, 8).reshape(2, 4, 2), jnp.int8)
    assert packed(codes).dtype == jnp.uint8
    assert packed(codes).shape == (2, 2, 2)
    np.testing.assert_array_equal(unpacked(packed(codes)), codes)


@CASES
@pytest.mark.parametrize("weights", ["int4"])
def test_training_computes_with_the_codes_numbers_and_the_gradient_passes_through(made, weights):
    """The loss is that of the rounded kernels, and so is its gradient, but for the kernels themselves."""
    model, params = made
    config, batch = QuantizationConfig(weights=weights, group=8), batch_of(model)
    simulated = model.clone(config=model.config.with_fields({"quantization": config}))

    def loss(model, params):
        hidden = model.apply({"params": params}, batch, DropoutRates(), method="states")
        return jnp.sum(jnp.sin(hidden))

    rounded = jax.tree.map(jnp.asarray, in_full(quantize_layers(params, config), "float32"))
    found, gradient = jax.jit(jax.value_and_grad(lambda p: loss(simulated, p)))(params)
    expected, reference = jax.jit(jax.value_and_grad(lambda p: loss(model, p)))(rounded)
    assert abs(found - jax.jit(lambda p: loss(model, p))(params)) > 1e-3, "nothing was rounded"
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for path, x in flat(gradient).items():
        np.testing.assert_allclose(x, flat(reference)[path], rtol=1e-3, atol=1e-4, err_msg=path)
    assert all(np.any(x) for path, x in flat(gradient).items() if is_hidden_matrix(tuple(path.split("/"))))


def test_products_of_integers_round_their_inputs_and_pass_the_gradient_on():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(3, 2, 4)) * 3, rng.normal(size=(2, 4, 6))
    config = QuantizationConfig(weights="int8", activations="int8", stored=True, factors=True)
    factors = jnp.asarray(rng.uniform(0.5, 2, size=8), "float32")
    whole = quantized(jnp.asarray(kernel, "float32"), (0, 1), config, factors)
    given, weights = jnp.asarray(x, "float32"), rng.normal(size=(3, 6))
    flat_x = x.reshape(3, 8) * np.asarray(factors, np.float64)
    scale = np.abs(flat_x).max(1, keepdims=True) / 127
    codes = np.asarray(whole.values, np.float64) * np.asarray(whole.scales, np.float64)
    np.testing.assert_allclose(integer_dot(given, whole, 2, None), np.round(flat_x / scale) * scale @ codes, rtol=2e-5)
    found = jax.grad(lambda x: jnp.sum(integer_dot(x, whole, 2, None) * weights))(given)
    np.testing.assert_allclose(found, np.einsum("bo,hio->bhi", weights, whole.astype("float32")), rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"group": 4}, "no effect with weights=none"),
        ({"weights": "int4", "activations": "int8"}, "activations=int8 needs weights=int8 and group=0"),
        ({"weights": "int8", "factors": True}, "factors=True is for stored kernels"),
        ({"weights": "int8", "group": 7}, "quantization.group=7 does not divide embed_dim=16"),
    ],
)
def test_forms_that_cannot_work_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        PRESETS["nano_decoder"].with_fields(TINY | {"quantization": fields})


@pytest.mark.parametrize("weights", ["int4", "nf4"])
@pytest.mark.parametrize(
    ("group", "factors", "turns"), [(0, False, False), (4, True, False), (4, False, False), (3, True, True)]
)
def test_kernels_of_four_bits_are_multiplied_in_halves(weights, group, factors, turns):
    """A group of three inputs splits a pair, so that its numbers are put in turn first, as for `astype`."""
    rng = np.random.default_rng(0)
    kernel, x = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4, 6, 5), (3, 4, 6)))
    by = jnp.asarray(rng.uniform(0.5, 2, size=24), jnp.float32) if factors else None
    config = QuantizationConfig(weights=weights, group=group, stored=True, factors=factors)
    codes = quantized(kernel, (0, 1), config, by)
    plain = np.tensordot(np.asarray(x, np.float64), np.asarray(codes.astype(jnp.float32), np.float64), 2)
    np.testing.assert_allclose(layers.dot(x, codes, 2), plain, rtol=1e-5, atol=1e-5)
    traced = str(jax.make_jaxpr(lambda x, k: layers.dot(x, k, 2))(x, codes))
    assert traced.count("dot_general[") == (1 if turns else 2), "XLA on a TPU writes numbers put in turn to memory"
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(layers.dot(x, codes, 2))))(x)
    expected = np.tensordot(np.cos(plain), np.asarray(codes.astype(jnp.float32)), [[1], [2]])
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
