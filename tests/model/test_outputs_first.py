"""Kernels with their outputs first: the same products, from arrays in another order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model import layers
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.outputs_first import OutputsFirst, inputs_first, outputs_first
from lmjax.model.parameter_paths import is_hidden_matrix
from lmjax.model.parameters import count_parameters, flat, unboxed
from lmjax.model.presets import PRESETS
from lmjax.model.quantized import is_quantized, quantize_layers

TINY = {"vocab_size": 48, "embed_dim": 16, "num_heads": 2, "mlp_dim": 24, "num_layers": 2, "max_length": 32}
EXPERTS = {"moe": {"num_experts": 3, "top_k": 2}}
CASES = pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("decoder", {"scan_layers": False, "num_kv_heads": 1, "mlp": "swiglu"}),
        ("decoder", {"scan_layers": False, **EXPERTS}),
        ("decoder", {"scan_layers": True}),
        ("encoder", {"scan_layers": False}),
        ("encoder_decoder", {"scan_layers": False}),
    ],
)


def made(architecture, fields):
    model = LanguageModel(PRESETS[f"nano_{architecture}"].with_fields(TINY | fields))
    return model, unboxed(init_params(model, jax.random.key(0)))


def batch_of(model):
    tokens = jax.random.randint(jax.random.key(1), (2, 8), 1, 48)
    ones, places = jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(8), tokens.shape)
    return {
        f"{side.prefix}{name}": x
        for side in model.config.family.sides
        for name, x in (("tokens", tokens), ("segment_ids", ones), ("positions", places))
    }


def laid(params):
    """The paths of the kernels with their outputs first."""
    leaves = jax.tree.leaves_with_path(params, is_leaf=lambda x: isinstance(x, OutputsFirst))
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    return {path for path, leaf in named.items() if isinstance(leaf, OutputsFirst)}


@CASES
def test_every_family_computes_the_same(architecture, fields):
    model, params = made(architecture, fields)
    before = {path: np.asarray(x) for path, x in flat(params).items()}
    plain = model.apply({"params": params}, batch_of(model))
    first = outputs_first(params)
    scanned = {path for path in before if fields["scan_layers"] or ("moe/" in path and "router" not in path)}
    assert laid(first) == {path for path in before if is_hidden_matrix(tuple(path.split("/")))} - scanned
    assert count_parameters(first) == sum(x.size for x in before.values())
    np.testing.assert_allclose(model.apply({"params": first}, batch_of(model)), plain, rtol=1e-5, atol=1e-5)
    restored = flat(inputs_first(first))
    assert restored.keys() == before.keys()
    for path, x in restored.items():
        np.testing.assert_array_equal(x, before[path], err_msg=path)


def test_the_arrays_are_given_up_one_after_the_other():
    _, params = made("decoder", {"scan_layers": False})
    kept = flat(params)
    first = laid(outputs_first(params))
    assert first
    for path, x in kept.items():
        assert x.is_deleted() == (path in first), path


def test_kernels_in_few_bits_stay_as_they_are():
    _, params = made("decoder", {"scan_layers": False})
    codes = quantize_layers(params)
    found = outputs_first(codes)
    assert not laid(found)
    assert any(is_quantized(x) for x in jax.tree.leaves(found, is_leaf=is_quantized))


SHAPES = [((3,), (8,), (4, 3)), ((2, 5), (4, 3), (8,)), ((1,), (6,), (5,)), ((70,), (6,), (5,))]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("rows", "inputs", "columns"), SHAPES)
def test_a_product_is_that_of_the_kernel_itself(monkeypatch, platform, rows, inputs, columns):
    monkeypatch.setattr(layers, "platform", lambda: platform)
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=s) for s in ((*rows, *inputs), (*inputs, *columns)))
    first = OutputsFirst(jnp.asarray(kernel.reshape(np.prod(inputs), -1).T, jnp.float32), kernel.shape)
    found = layers.dot(jnp.asarray(x, jnp.float32), first, len(inputs))
    np.testing.assert_allclose(found, np.tensordot(x, kernel, len(inputs)), rtol=1e-5, atol=1e-5)
    assert (first.shape, first.ndim, first.dtype) == (kernel.shape, kernel.ndim, jnp.float32)
