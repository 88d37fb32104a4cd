"""The whole model: which outputs exist, dropout as data, bfloat16, and the same values on a mesh."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lmjax.model.config import DropoutRates
from lmjax.model.language_model import HEADS, LanguageModel, init_params
from lmjax.parallel import axes

TOKENS = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
RATES = {"dropout_rate": 0.2, "attention_dropout_rate": 0.2, "mlp_dropout_rate": 0.2, "output_dropout_rate": 0.2}


def test_heads_that_were_not_asked_for_do_not_exist(build):
    fields = {"mlm_transform": True, "output_bias": True, "tie_embeddings": False}
    bare = {"embedding", "backbone"}
    vocabulary = {"transform", "output", "output_bias"}
    assert set(build("encoder", (), **fields)[1]) == bare
    assert set(build("encoder", ("masked_lm",), **fields)[1]) == bare | vocabulary
    assert set(build("encoder", ("next_sentence",), **fields)[1]) == bare | {"next_sentence_head"}
    assert set(build("encoder", HEADS, **fields)[1]) == bare | vocabulary | {"next_sentence_head"}
    assert set(build("decoder")[1]) == bare


def test_outputs_that_a_model_lacks_are_refused(build):
    model, params = build("encoder")
    with pytest.raises(ValueError, match="masked_lm"):
        model.apply({"params": params}, jnp.ones((1, 16)), method="logits")
    with pytest.raises(ValueError, match=r"unknown heads.*masked_lm, next_sentence"):
        init_params(LanguageModel(model.config, ("nsp",)), jax.random.key(0))
    with pytest.raises(ValueError, match="stand on an encoder"):
        init_params(LanguageModel(build("decoder")[0].config, HEADS), jax.random.key(0))


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_chosen_positions_are_those_of_all(build, tied):
    fields = {"mlm_transform": True, "output_bias": True, "tie_embeddings": tied}
    model, params = build("encoder", ("masked_lm",), **fields)
    hidden = jax.random.normal(jax.random.key(0), (2, 6, 16))
    logits = functools.partial(model.apply, {"params": params}, method="logits")
    np.testing.assert_allclose(logits(hidden[1, 2:5]), logits(hidden)[1, 2:5], atol=1e-5)


def test_the_encoder_decoder_shares_one_token_table(build):
    _, params = build("encoder_decoder", positions="relative")
    tables = [path for path, _ in jax.tree_util.tree_leaves_with_path(params) if "table" in jax.tree_util.keystr(path)]
    assert len(tables) == 3, "the tokens' and each side's relative bias"


def _drop(model, params, rates, deterministic=False):
    args = {"deterministic": deterministic, "dropout_rates": rates, "rngs": {"dropout": jax.random.key(3)}}
    return model.apply({"params": params}, {"tokens": TOKENS}, **args)


def test_dropout_rates_are_data(build):
    model, params = build("decoder", **RATES)
    run = jax.jit(functools.partial(_drop, model))
    rates = model.config.dropout_rates()
    drawn = run(params, rates)
    other = run(params, jax.tree.map(lambda rate: np.float32(rate / 2), rates))
    none = run(params, jax.tree.map(np.zeros_like, rates))
    assert run._cache_size() == 1, "a changed rate compiles nothing anew"
    assert np.abs(drawn - other).max() > 0.01
    exact = jax.jit(functools.partial(_drop, model, deterministic=True))(params, rates)
    np.testing.assert_allclose(none, exact, atol=1e-5, err_msg="rates of zero")
    np.testing.assert_array_equal(exact, run(params, DropoutRates()), "no rates")
    np.testing.assert_array_equal(drawn, run(params, None), "the config's own rates")


def test_each_rate_reaches_its_place_in_every_row(build):
    model, params = build("decoder", **RATES)
    run = jax.jit(functools.partial(_drop, model))
    rates = jax.tree.map(np.zeros_like, model.config.dropout_rates())
    exact = run(params, rates)
    for place in ("residual", "attention", "mlp", "output"):
        dropped = run(params, rates.replace(**{place: np.float32(0.5)}))
        assert (np.abs(dropped - exact).max(-1) > 0.001).mean() > 0.8, place
    np.testing.assert_allclose(dropped[dropped != 0], 2 * exact[dropped != 0], rtol=1e-5, err_msg="output: after all")
    assert 0.35 < (dropped == 0).mean() < 0.65


def test_bfloat16_computes_with_float32_parameters(build, forward):
    fields = {"num_types": 2, "mlm_transform": True}
    model, params = build("encoder", HEADS, **fields)
    half = LanguageModel(model.config.model_copy(update={"dtype": "bfloat16"}), HEADS)
    fresh = jax.eval_shape(lambda: init_params(half, jax.random.key(0)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(fresh)} == {"float32"}
    outputs = forward(half, params, {"tokens": TOKENS}, method="outputs")
    exact = forward(model, params, {"tokens": TOKENS}, method="outputs")
    assert outputs["hidden"].dtype == jnp.bfloat16
    for name in ("logits", "next_sentence"):
        assert outputs[name].dtype == jnp.float32
        scale = float(jnp.std(exact[name]))
        np.testing.assert_allclose(outputs[name], exact[name], atol=0.15 * scale, rtol=0, err_msg=name)


def test_a_mesh_changes_no_value(build, forward):
    model, _ = build("encoder_decoder", positions="relative", num_layers=1, scan_layers=False)
    init = functools.partial(init_params, model)
    alone = nn.unbox(jax.jit(init)(jax.random.key(0)))
    batch = dict.fromkeys(("encoder_tokens", "decoder_tokens"), np.tile(TOKENS, (2, 1)))
    mesh = jax.make_mesh((2, 2, 2), axes.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    specs = nn.get_partition_spec(jax.eval_shape(init, jax.random.key(0)))
    with jax.set_mesh(mesh), nn.logical_axis_rules(axes.RULES):
        shardings = nn.logical_to_mesh_sharding(specs, mesh, axes.RULES)
        params = nn.unbox(jax.jit(init, out_shardings=shardings)(jax.random.key(0)))
        outputs = jax.jit(functools.partial(model.apply, method="outputs"))({"params": params}, batch)
    assert tuple(params["embedding"]["table"].sharding.spec) == ("tensor", "fsdp")
    assert not outputs["logits"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, params, alone)
    expected = forward(model, alone, batch, method="outputs")
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), outputs, expected)
