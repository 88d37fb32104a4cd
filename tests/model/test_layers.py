"""The parts of a block do what their papers say: products, norms, gates, dropout with a traced rate."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.config import ModelConfig
from lmjax.model.layers import ACTIVATIONS, Dense, Embed, Norm, dot, dropout

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
        ({"initializer": "scaled"}, CONFIG.model_copy(update={"initializer": "scaled"}).residual_init_scale, 0.005),
        ({"initializer": "fan_in"}, 1.0, 400**-0.5),
        ({"initializer": "fan_in", "attention_scale": False}, 0.1, 0.1 * 400**-0.5),
    ],
)
def test_kernels_start_at_the_published_deviation(fields, scale, std):
    config = CONFIG.model_copy(update=fields)
    if "attention_scale" in fields:
        assert config.query_init_scale == scale, "T5's queries carry the 1/sqrt(head_dim) that its scores lack"
    dense = Dense(config, (200,), ("embed", "mlp"), init_scale=scale)
    params = nn.unbox(dense.init(jax.random.key(0), jnp.ones((1, 400))))["params"]
    assert float(jnp.std(params["kernel"])) == pytest.approx(std, rel=0.02)
    assert not params["bias"].any()


@pytest.mark.parametrize(
    ("fields", "std"),
    [
        ({"initializer": "normal"}, 0.02),
        ({"initializer": "fan_in", "logit_scale": True}, 1.0),
        ({"initializer": "fan_in", "tie_embeddings": False}, 1.0),
        ({"initializer": "fan_in"}, 400**-0.5),
        ({"initializer": "fan_in", "tie_embeddings": False, "embed_scale": True}, 400**-0.5),
    ],
)
def test_embeddings_start_with_unit_variance_where_they_act(fields, std):
    embed = Embed(CONFIG.model_copy(update=fields), 100, "vocab")
    table = nn.unbox(embed.init(jax.random.key(0), jnp.zeros((1,), jnp.int32)))["params"]["table"]
    assert float(jnp.std(table)) == pytest.approx(std, rel=0.02)


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


def test_activations_are_those_of_their_names():
    x = np.linspace(-4, 4, 41)
    erf = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    silu = x / (1 + np.exp(-x))
    expected = {
        "relu": x.clip(0),
        "gelu": erf,
        "gelu_new": tanh,
        "silu": silu,
        "geglu": erf,
        "geglu_new": tanh,
        "swiglu": silu,
    }
    assert expected.keys() == ACTIVATIONS.keys()
    for name, y in expected.items():
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), y, atol=1e-6, err_msg=name)


def test_dropout_keeps_the_right_fraction_and_the_mean():
    y = dropout(jnp.full((1000, 1000), 2.0), jnp.float32(0.2), lambda _: jax.random.key(0))
    kept = y != 0
    assert float(kept.mean()) == pytest.approx(0.8, abs=0.002)
    np.testing.assert_allclose(y[kept], 2.5, rtol=1e-6)
    assert kept.mean(0).std() == pytest.approx(0.4 / math.sqrt(1000), rel=0.1), "elements are dropped independently"


def test_a_changed_rate_compiles_nothing_and_no_rate_draws_nothing():
    f = jax.jit(lambda x, rate: dropout(x, rate, lambda _: jax.random.key(0)))
    x = jnp.ones((8, 8))
    outputs = [f(x, np.float32(rate)) for rate in (0.0, 0.1, 0.5)]
    assert f._cache_size() == 1
    np.testing.assert_array_equal(outputs[0], x)
    assert (outputs[1] != outputs[2]).any()
    assert dropout(x, None, make_rng=functools.partial(pytest.fail, "a random number was drawn")) is x
    many = jax.vmap(f, (None, 0))(x, jnp.array([0.1, 0.5]))
    np.testing.assert_array_equal(many, jnp.stack(outputs[1:]), "many rates at once: the same masks")


def test_dropout_keeps_the_compute_dtype():
    y = dropout(jnp.ones((8, 8), jnp.bfloat16), jnp.float32(0.5), lambda _: jax.random.key(0))
    assert y.dtype == jnp.bfloat16
