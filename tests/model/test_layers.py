"""The layers of a block compute what their papers define: products, norms, gates."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.config import ModelConfig
from lmjax.model.layers import ACTIVATIONS, Dense, Embed, Norm, dot

CONFIG = ModelConfig(
    architecture="decoder", vocab_size=8, embed_dim=400, num_heads=4, mlp_dim=32, num_layers=8, max_length=8
)


def test_dot_contracts_trailing_with_leading_dimensions():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    kernel = jax.random.normal(jax.random.key(1), (4, 5, 6, 7))
    np.testing.assert_allclose(dot(x, kernel, 2), jnp.einsum("abcd,cdef->abef", x, kernel), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "scale", "std"),
    [
        ({"initializer": "normal"}, 1.0, 0.02),
        ({"initializer": "scaled"}, CONFIG.model_copy(update={"initializer": "scaled"}).residual_init_scale(5), 0.005),
        (
            {"initializer": "depth_scaled"},
            CONFIG.model_copy(update={"initializer": "depth_scaled"}).residual_init_scale(1),
            0.01,
        ),
        ({"initializer": "truncated_normal"}, 1.0, 0.02 * 0.8796),  # the deviation of a normal cut at two
        ({"initializer": "fan_in"}, 1.0, 400**-0.5),
        ({"initializer": "fan_in", "attention.scale": 1.0}, 0.1, 0.1 * 400**-0.5),
        ({"initializer": "xavier"}, 1.0, (2 / 600) ** 0.5),
    ],
)
def test_kernels_start_at_the_published_deviation(fields, scale, std):
    config = CONFIG.model_copy(update=fields)
    carried = scale if "attention.scale" in fields else 1.0
    assert config.query_init_scale == carried, "T5's queries carry the 1/sqrt(head_dim) that its scores lack"
    dense = Dense(config, (200,), ("embed", "mlp"), init_scale=scale, use_bias=False)
    params = nn.unbox(dense.init(jax.random.key(0), jnp.ones((1, 400))))["params"]
    assert float(jnp.std(params["kernel"])) == pytest.approx(std, rel=0.02)
    limits = {"truncated_normal": 0.04, "xavier": 0.1}
    assert float(jnp.abs(params["kernel"]).max()) <= limits.get(fields["initializer"], math.inf)


@pytest.mark.parametrize(
    ("fields", "std"),
    [
        ({"initializer": "normal"}, 0.02),
        ({"initializer": "truncated_normal"}, 0.02 * 0.8796),
        ({"initializer": "xavier", "embedding.scale": True}, 400**-0.5),
        ({"initializer": "fan_in", "head.scale": True}, 1.0),
        ({"initializer": "fan_in", "head.tied": False}, 1.0),
        ({"initializer": "fan_in"}, 400**-0.5),
        ({"initializer": "fan_in", "head.tied": False, "embedding.scale": True}, 400**-0.5),
    ],
)
def test_embeddings_start_with_unit_variance_where_they_act(fields, std):
    embed = Embed(CONFIG.model_copy(update=fields), 100, "vocab")
    table = nn.unbox(embed.init(jax.random.key(0), jnp.zeros((1,), jnp.int32)))["params"]["table"]
    assert float(jnp.std(table)) == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("name", ["query", "key", "value", "out", "up", "gate", "down"])
def test_a_layer_has_a_bias_if_the_config_names_it(name):
    """Qwen 2 has biases on queries, keys and values only; with another bias its weights could not be loaded."""
    layers = {
        n: Dense(CONFIG.model_copy(update={"biases": (n,)}), (3,), ("embed", "mlp"), name=name) for n in (name, "norm")
    }
    params = {n: nn.unbox(layer.init(jax.random.key(0), jnp.ones((1, 400))))["params"] for n, layer in layers.items()}
    assert set(params["norm"]) == {"kernel"}
    assert set(params[name]) == {"kernel", "bias"}
    assert not params[name]["bias"].any()


def test_an_id_outside_the_table_is_not_another_token():
    embed = Embed(CONFIG, 3, "vocab")
    y = embed.apply(embed.init(jax.random.key(0), jnp.zeros((1,), jnp.int32)), jnp.array([2, 3]))
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norms_are_computed_in_float32(kind):
    config = CONFIG.model_copy(update={"norm": kind, "dtype": "bfloat16", "norm_epsilon": 1e-12})
    x = (100.0 + jax.random.normal(jax.random.key(0), (2, 3, 400))).astype(jnp.bfloat16)
    y, _ = Norm(config).init_with_output(jax.random.key(0), x)
    x = np.asarray(x, np.float64)
    if kind == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(y, np.float64), x / np.sqrt((x**2).mean(-1, keepdims=True)), rtol=0.004)
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"biases": ("norm",)}, {"scale", "bias"}),
        ({"biases": ()}, {"scale"}),
        ({"biases": (), "norm_scale": False}, set()),
        ({"norm": "rmsnorm"}, {"scale"}),
        ({"norm": "rmsnorm", "norm_offset": True}, {"scale"}),
    ],
)
def test_norms_learn_what_the_config_says(fields, expected):
    config = CONFIG.model_copy(update=fields)
    x = jax.random.normal(jax.random.key(0), (3, 400))
    y, variables = Norm(config).init_with_output(jax.random.key(0), x)
    params = nn.unbox(variables).get("params", {})
    assert set(params) == expected
    moved = jax.tree.map(lambda leaf: leaf + 0.5, params)
    if expected:
        shift = 0.5 if "bias" in expected else 0.0
        np.testing.assert_allclose(Norm(config).apply({"params": moved}, x), 1.5 * y + shift, rtol=1e-5, atol=1e-5)
    if config.norm_offset:
        assert not params["scale"].any(), "weights of zero are a scale of one: decay pulls towards it"


def test_activations_are_those_of_their_names():
    x = np.linspace(-4, 4, 41)
    erf = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    silu = x / (1 + np.exp(-x))
    expected = {
        "relu": x.clip(0),
        "relu2": x.clip(0) ** 2,
        "gelu": erf,
        "gelu_new": tanh,
        "silu": silu,
        "geglu": erf,
        "geglu_new": tanh,
        "swiglu": silu,
        "reglu": x.clip(0),
    }
    assert expected.keys() == ACTIVATIONS.keys()
    for name, y in expected.items():
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), y, atol=1e-6, err_msg=name)
