"""The formula of each kind of adapter against its definition in float64, for every shape of a Dense layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.adapters.config import AdapterConfig
from lmjax.adapters.forms import FORMS, NAMES
from lmjax.adapters.merge import merged
from lmjax.adapters.model import _Interceptor
from lmjax.model.config import ModelConfig
from lmjax.model.layers import Dense
from lmjax.model.parameters import unboxed
from lmjax.model.presets import PRESETS

LAYERS = {
    "query": ((4, 6), ("embed", "heads", "head_dim"), (24,)),
    "out": ((24,), ("heads", "head_dim", "embed"), (4, 6)),
    "up": ((40,), ("embed", "mlp"), (24,)),
    "down": ((24,), ("mlp", "embed"), (40,)),
}


class Layer(nn.Module):
    """One Dense layer inside another module, as in a model."""

    config: ModelConfig
    name_of: str

    @nn.compact
    def __call__(self, x):
        features, axes, _ = LAYERS[self.name_of]
        return Dense(self.config, features, axes, use_bias=True, name=self.name_of)(x)


def adapted(kind, name):
    """Returns the adapter's fields, an input, the parameters of a layer with random numbers, and its output."""
    fields = AdapterConfig(kind=kind, targets=name, rank=3, alpha=5.0)
    layer = Layer(PRESETS["nano_decoder"], name)
    x = np.random.default_rng(1).normal(size=(2, 5, *LAYERS[name][2])).astype(np.float32)
    with nn.intercept_methods(_Interceptor(fields)):
        shapes = unboxed(jax.eval_shape(lambda: layer.init(jax.random.key(0), x)))
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)
        return fields, x, params["params"], layer.apply(params, x)


def matrices(own, name):
    """Returns the parameters in float64, kernels and factors as matrices."""
    inputs = int(np.prod(LAYERS[name][2]))
    wide = {key: np.asarray(value, np.float64) for key, value in own.items()}
    shapes = {"kernel": (inputs, -1), "lora_a": (inputs, 3), "lora_b": (3, -1)}
    return {key: x.reshape(shapes.get(key, (-1,))) for key, x in wide.items()}


def reference(kind, name, own, x, alpha=5.0, rank=3):
    """Returns `[batch, length, outputs]`, by the formulas of the papers with the kernel as it would be merged."""
    p = matrices(own, name)
    x = np.asarray(x, np.float64).reshape(2, 5, -1)
    if kind == "ia3":
        if name == "down":
            return (x * p["ia3_inputs"]) @ p["kernel"] + p["bias"]
        return (x @ p["kernel"] + p["bias"]) * p["ia3_outputs"]
    scale = alpha / (np.sqrt(rank) if kind == "rslora" else rank)
    kernel = p["kernel"] + scale * p["lora_a"] @ p["lora_b"]
    if kind == "dora":
        kernel = p["dora_magnitude"] * kernel / np.linalg.norm(kernel, axis=0)
    return x @ kernel + p["bias"]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", FORMS)
def test_the_output_is_that_of_the_paper(kind, name):
    _, x, params, y = adapted(kind, name)
    expected = reference(kind, name, params[name], x)
    np.testing.assert_allclose(np.asarray(y).reshape(2, 5, -1), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", FORMS)
def test_a_merged_layer_computes_the_same(kind, name):
    fields, x, params, y = adapted(kind, name)
    plain = merged(params, fields)
    assert NAMES.isdisjoint(plain[name])
    found = Layer(PRESETS["nano_decoder"], name).apply({"params": plain}, x)
    np.testing.assert_allclose(found, y, rtol=2e-5, atol=2e-5 * float(jnp.abs(y).max()))


@pytest.mark.parametrize("kind", FORMS)
def test_a_new_adapter_changes_nothing(kind):
    """B is zero, the lengths of dora are those of the columns, and the factors of ia3 are one."""
    fields, layer = AdapterConfig(kind=kind, targets="query"), Layer(PRESETS["nano_decoder"], "query")
    x = np.random.default_rng(1).normal(size=(2, 5, 24)).astype(np.float32)
    with nn.intercept_methods(_Interceptor(fields)):
        params = unboxed(layer.init(jax.random.key(0), x))
        y = layer.apply(params, x)
    bare = {key: value for key, value in params["params"]["query"].items() if key not in NAMES}
    plain = layer.apply({"params": {"query": bare}}, x)
    tolerance = 1e-6 if kind == "dora" else 0
    np.testing.assert_allclose(y, plain, rtol=tolerance, atol=tolerance)
