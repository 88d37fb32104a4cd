"""Experts: all dispatches give the same sum over the chosen experts; the router's losses are those of the papers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lmjax import axes
from lmjax.model.config import ModelConfig
from lmjax.model.groups import MoEConfig
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.moe import AUXILIARY, MoE, auxiliary_sums, auxiliary_weight, dispatch

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]])


def _config(mlp="swiglu", **moe):
    return ModelConfig(
        architecture="decoder",
        vocab_size=16,
        embed_dim=8,
        num_heads=2,
        mlp_dim=12,
        num_layers=2,
        max_length=8,
        mlp=mlp,
        moe=MoEConfig(**({"num_experts": 4} | moe)),
    )


def _layer(config, noise=0.5):
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    shapes = nn.unbox(jax.eval_shape(lambda: MoE(config).init(jax.random.key(0), x, None, None)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.1, noise, leaf.shape).astype(np.float32), shapes), x


@functools.partial(jax.jit, static_argnums=0)
def _apply(config, params, x, segments):
    y, left = MoE(config).apply({"params": params}, x, segments, None, mutable=[AUXILIARY])
    return y, auxiliary_sums(left[AUXILIARY])


def _reference(config, params, x):
    """Returns the layer's output, computed token by token in float64."""
    p, out = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params), np.zeros(x.shape)
    for b, i in np.ndindex(x.shape[:2]):
        token = np.asarray(x[b, i], np.float64)
        logits = token @ p["router"]["kernel"]
        gates = np.exp(logits) / np.exp(logits).sum()
        chosen = np.argsort(-gates)[: config.moe.top_k]
        total = gates[chosen].sum() if config.moe.normalize else 1.0
        for e in chosen:
            hidden = token @ p["up"]["kernel"][e] + p["up"]["bias"][e]
            if config.gated_mlp:
                gate = token @ p["gate"]["kernel"][e] + p["gate"]["bias"][e]
                hidden = hidden * gate / (1 + np.exp(-gate))
            else:
                hidden = np.maximum(hidden, 0)
            out[b, i] += gates[e] / total * (hidden @ p["down"]["kernel"][e] + p["down"]["bias"][e])
    return out


@pytest.mark.parametrize("dispatch", ["dense", "ragged"])
@pytest.mark.parametrize(
    ("mlp", "moe"), [("swiglu", {}), ("relu", {"top_k": 1, "normalize": False}), ("relu", {"top_k": 3, "mlp_dim": 5})]
)
def test_every_dispatch_is_the_sum_over_the_chosen_experts(mlp, moe, dispatch):
    config = _config(mlp, dispatch=dispatch, **moe)
    params, x = _layer(config)
    assert params["down"]["kernel"].shape == (4, config.moe.mlp_dim or 12, 8)
    y, _ = _apply(config, params, x, None)
    np.testing.assert_allclose(y, _reference(config, params, x), atol=1e-4)


def test_dispatches_have_the_same_gradients_and_the_router_learns():
    def gradient(dispatch):
        config = _config(dispatch=dispatch)
        params, x = _layer(config)
        return jax.jit(jax.grad(lambda args: jnp.sum(jnp.sin(_apply(config, *args, SEGMENTS)[0]))))((params, x))

    dense, ragged = gradient("dense"), gradient("ragged")
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), dense, ragged)
    assert np.abs(ragged[0]["router"]["kernel"]).max() > 0.01


@pytest.mark.parametrize("dispatch", ["dense", "ragged"])
def test_padding_passes_through_no_expert_and_counts_in_no_loss(dispatch):
    config = _config(dispatch=dispatch)
    params, x = _layer(config)
    y, sums = _apply(config, params, x, SEGMENTS)
    assert not y[SEGMENTS == 0].any()
    assert y[SEGMENTS > 0].any(-1).all()
    other = jnp.where((SEGMENTS > 0)[..., None], x, 7.0)
    again, others = _apply(config, params, other, SEGMENTS)
    np.testing.assert_allclose(again, y, atol=1e-6)
    for name, (loss, weight) in sums.items():
        assert float(loss) == pytest.approx(float(others[name][0]), rel=1e-5), name
        assert float(weight) == 9


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_balance_loss_is_one_where_the_router_is_uniform(top_k):
    config = _config(top_k=top_k, normalize=False)
    params, _ = _layer(config)
    # Four kinds of tokens, each with its own first and second expert, so that all experts are chosen equally often.
    x = jnp.tile(jnp.eye(8)[None, :4], (2, 2, 1))
    router = np.zeros((8, 4), np.float32)
    for i in range(4):
        router[i, i], router[i, (i + 1) % 4] = 2e-3, 1e-3
    params = params | {"router": {"kernel": router}}
    loss, weight = _apply(config, params, x, None)[1]["router_balance"]
    assert float(loss / weight) == pytest.approx(1.0, rel=1e-4)
    # One expert is the first choice of all tokens: E * f * P = 4 * 1 * 1 for one choice.
    collapsed = params | {"router": {"kernel": np.tile(np.array([30.0, 10.0, 0.0, 0.0], np.float32), (8, 1))}}
    loss, weight = _apply(config, collapsed, x, None)[1]["router_balance"]
    assert float(loss / weight) == pytest.approx(4.0 / top_k, rel=1e-4)


def test_the_losses_are_the_papers():
    config = _config()
    params, x = _layer(config)
    sums = _apply(config, params, x, SEGMENTS)[1]
    logits = np.asarray(x[SEGMENTS > 0], np.float64) @ params["router"]["kernel"]
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    used = np.zeros(4)
    for row in np.argsort(-logits)[:, :2]:
        used[row] += 1 / (2 * len(logits))
    balance = 4 * (used * probabilities.mean(0)).sum()
    z = (np.log(np.exp(logits).sum(-1)) ** 2).mean()
    for name, expected in (("router_balance", balance), ("router_z", z)):
        assert float(sums[name][0] / sums[name][1]) == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("share", [True, False])
def test_each_layer_counts_once(scan, share):
    config = _config(dispatch="dense").model_copy(update={"scan_layers": scan, "share_layers": share})
    model = LanguageModel(config)
    batch = {"tokens": np.arange(12).reshape(2, 6), "segment_ids": SEGMENTS}

    @jax.jit
    def left(rng):
        params = init_params(model, rng)
        return model.apply({"params": nn.unbox(params)}, batch, mutable=[AUXILIARY])[1][AUXILIARY]

    collection = left(jax.random.key(0))
    per_layer = np.concatenate([np.reshape(leaf, (-1, 2)) for leaf in jax.tree.leaves(collection)])
    assert len(per_layer) == 2 * config.num_layers, "two losses of every layer"
    sums = auxiliary_sums(collection)
    assert sum(float(loss) for loss, _ in sums.values()) == pytest.approx(per_layer[:, 0].sum() / 2, rel=1e-5)
    assert {float(weight) for _, weight in sums.values()} == {float(auxiliary_weight(config, batch))} == {9.0}


def test_an_encoder_decoders_layers_count_the_tokens_they_see():
    sides = {"architecture": "encoder_decoder", "num_layers": 3, "num_decoder_layers": 1, "scan_layers": False}
    config = _config().model_copy(update=sides | {"moe": MoEConfig(num_experts=4, every=2, dispatch="dense")})
    model = LanguageModel(config)
    batch = {"encoder_tokens": np.zeros((2, 6), int), "encoder_segment_ids": SEGMENTS}
    batch["decoder_tokens"] = np.zeros((2, 4), int)
    collection = jax.jit(lambda rng: model.init(rng, batch)[AUXILIARY])(jax.random.key(0))
    assert len(jax.tree.leaves(collection)) == 2 * 3, "layers 0 and 2 of the encoder, and layer 0 of the decoder"
    sums = auxiliary_sums(collection)
    assert float(sums["router_z"][1]) == pytest.approx((9 + 9 + 8) / 3)
    assert float(auxiliary_weight(config, batch)) == pytest.approx((9 + 9 + 8) / 3)


@pytest.mark.parametrize(("sizes", "expected"), [((2, 1, 4, 1, 1), "dense"), ((8, 1, 1, 1, 1), "ragged")])
def test_the_dispatch_follows_the_mesh(sizes, expected):
    assert dispatch(MoEConfig()) == dispatch(MoEConfig(dispatch="ragged")) == "ragged"
    assert dispatch(MoEConfig(dispatch="dense")) == "dense"
    with jax.set_mesh(jax.make_mesh(sizes, axes.MESH_AXES, axis_types=(AxisType.Auto,) * 5)):
        assert dispatch(MoEConfig()) == expected


@pytest.mark.parametrize("sizes", [(2, 1, 4, 1, 1), (2, 2, 1, 1, 2)])
def test_a_mesh_changes_no_value_and_splits_the_experts(sizes):
    config = _config()
    params, x = _layer(config)
    expected = _apply(config, params, x, SEGMENTS)
    mesh = jax.make_mesh(sizes, axes.MESH_AXES, axis_types=(AxisType.Auto,) * 5)
    specs = nn.get_partition_spec(jax.eval_shape(lambda: MoE(config).init(jax.random.key(0), x, None, None)))["params"]
    with jax.set_mesh(mesh), nn.logical_axis_rules(axes.RULES):
        shardings = nn.logical_to_mesh_sharding(specs, mesh, axes.RULES)
        assert shardings["up"]["kernel"].spec[0] == "expert"
        # A new function, because one compiled before would not use this mesh.
        actual = jax.jit(lambda *args: _apply.__wrapped__(config, *args))(
            jax.device_put(params, shardings), x, SEGMENTS
        )
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), actual, expected)
