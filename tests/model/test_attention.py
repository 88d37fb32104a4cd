"""The attention layer around its kernel: scales, caps, sinks, normalised queries and keys, rotary cross-attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.attention import Attention, Relation
from lmjax.model.config import ModelConfig
from lmjax.model.groups import RopeConfig
from lmjax.model.kernels import Mask
from lmjax.model.positions.rope import Rotation

CONFIG = ModelConfig(
    architecture="decoder",
    vocab_size=8,
    embed_dim=16,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=8,
    num_layers=1,
    max_length=8,
    norm="rmsnorm",
    attention={"kernel": "plain"},
)


def _layer(**fields):
    """Returns the layer, noisy parameters, and inputs `[1, 5, 16]`."""
    layer = Attention(CONFIG.model_copy(update=fields))
    x = jax.random.normal(jax.random.key(0), (1, 5, 16))
    shapes = nn.unbox(jax.eval_shape(lambda: layer.init(jax.random.key(0), x, x, Relation(Mask()), None)))["params"]
    rng = np.random.default_rng(0)
    return layer, jax.tree.map(lambda leaf: rng.normal(0.2, 0.5, leaf.shape).astype(np.float32), shapes), x


def _reference(p, x, memory, *, scale=0.5, cap=None, norm="none", angles=None):
    """Returns attention of one row, head by head in float64; `angles`: of queries and of keys, `[length, 2]`."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)
    x, memory = np.asarray(x[0], np.float64), np.asarray(memory[0], np.float64)
    query, key, value = (
        np.einsum("ld,dhe->lhe", source, p[name]["kernel"]) + p[name]["bias"]
        for name, source in (("query", x), ("key", memory), ("value", memory))
    )
    if norm != "none":
        dims = (-1,) if norm == "head" else (-2, -1)
        query, key = (
            y / np.sqrt((y**2).mean(dims, keepdims=True) + 1e-5) * p[name]["scale"].reshape(y.shape[-len(dims) :])
            for name, y in (("query_norm", query), ("key_norm", key))
        )
    if angles is not None:
        query, key = (
            np.concatenate([(pairs := (y[..., :2] + 1j * y[..., 2:]) * np.exp(1j * a)[:, None]).real, pairs.imag], -1)
            for y, a in zip((query, key), angles, strict=True)
        )
    out = np.zeros((len(x), 16)) + p["out"]["bias"]
    for h in range(4):
        scores = query[:, h] @ key[:, h // 2].T * scale
        scores = scores if cap is None else cap * np.tanh(scores / cap)
        weights = np.exp(scores)
        total = weights.sum(-1, keepdims=True) + (np.exp(p["sink_logits"][h]) if "sink_logits" in p else 0.0)
        out += weights / total @ value[:, h // 2] @ p["out"]["kernel"][h]
    return out


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({}, {}),
        ({"attention.scale": 1.5}, {"scale": 1.5}),
        ({"attention.softcap": 0.7}, {"cap": 0.7}),
        ({"attention.sink_logits": True}, {}),
        ({"attention.qk_norm": "head"}, {"norm": "head"}),
        ({"attention.qk_norm": "full"}, {"norm": "full"}),
    ],
)
def test_the_layer_is_its_formula(fields, arguments):
    layer, params, x = _layer(**fields)
    assert params.keys() >= {"query", "key", "value", "out"}
    y, _ = layer.apply({"params": params}, x, x, Relation(Mask()), None)
    np.testing.assert_allclose(y[0], _reference(params, x, x, **arguments), atol=1e-4)
    plain, others = _layer()[0], {k: v for k, v in params.items() if k in ("query", "key", "value", "out")}
    changed = np.abs(y - plain.apply({"params": others}, x, x, Relation(Mask()), None)[0]).max()
    assert (changed > 0.01) == bool(fields), "the field does something"


@pytest.mark.parametrize(("kind", "shapes"), [("head", ((4,), (4,))), ("full", ((16,), (8,)))])
def test_normalised_queries_and_keys_have_the_published_scales(kind, shapes):
    """Qwen 3 has one scale vector for all heads, OLMo 2 a scale for each column of each head."""
    params = _layer(**{"attention.qk_norm": kind})[1]
    assert (params["query_norm"]["scale"].shape, params["key_norm"]["scale"].shape) == shapes


def test_cross_attention_turns_queries_and_keys_at_their_own_positions():
    layer, params, x = _layer()
    memory = jax.random.normal(jax.random.key(1), (1, 3, 16))
    config = CONFIG.model_copy(update={"positions": "rope", "rope": RopeConfig(theta=100.0)})
    places = jnp.array([[0, 1, 2, 0, 1]]), jnp.array([[4, 0, 1]])
    relation = Relation(Mask(), None, *(Rotation.build(config, p) for p in places))
    angles = [np.asarray(p)[0][:, None] * 100.0 ** -np.array([0.0, 0.5]) for p in places]
    y, _ = layer.apply({"params": params}, x, memory, relation, None)
    np.testing.assert_allclose(y[0], _reference(params, x, memory, angles=angles), atol=1e-4)
