"""The whole model: its outputs, traced dropout rates, bfloat16, and the same values on a mesh."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lmjax import axes
from lmjax.model.dropout import DropoutRates
from lmjax.model.heads import heads_of
from lmjax.model.language_model import LanguageModel, init_params

TOKENS = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
RATES = {"dropout.residual": 0.2, "dropout.attention": 0.2, "dropout.mlp": 0.2, "dropout.output": 0.2}


def test_heads_that_were_not_asked_for_do_not_exist(build):
    fields = {"head.transform": True, "head.bias": True, "head.tied": False}
    bare = {"embedding", "backbone"}
    vocabulary = {"transform", "output", "output_bias"}
    assert set(build("encoder", (), **fields)[1]) == bare
    assert set(build("encoder", ("masked_lm",), **fields)[1]) == bare | vocabulary
    assert set(build("encoder", ("next_sentence",), **fields)[1]) == bare | {"next_sentence_head"}
    for name in ("replaced_token", "pooler", "classifier", "tagger", "span", "choice"):
        assert set(build("encoder", (name,), **fields)[1]) == bare | {f"{name}_head"}
    assert set(build("encoder", ("generator",), **fields)[1]) == bare | {"generator"}
    others = ("next_sentence", "replaced_token", "pooler", "classifier", "tagger", "span", "choice")
    heads = {f"{name}_head" for name in others} | {"generator"}
    assert set(build("encoder", heads_of("encoder"), **fields)[1]) == bare | vocabulary | heads
    assert set(build("decoder")[1]) == bare
    decoder = {"head.tied": False}
    assert set(build("decoder", **decoder)[1]) == bare | {"output"}
    assert set(build("decoder", ("classifier",), **decoder)[1]) == bare | {"classifier_head"}, "no vocabulary beside it"


def test_outputs_that_a_model_lacks_are_refused(build):
    model, params = build("encoder")
    with pytest.raises(ValueError, match="masked_lm"):
        model.apply({"params": params}, jnp.ones((1, 16)), method="logits")
    with pytest.raises(ValueError, match=r"no head 'nsp'.*masked_lm, next_sentence, replaced_token"):
        init_params(LanguageModel(model.config, ("nsp",)), jax.random.key(0))
    with pytest.raises(ValueError, match="no head 'pooler'"):
        model.apply({"params": params}, "pooler", jnp.ones((1, 2, 16)), {}, method="head")
    model, params = build("decoder", ("classifier",))
    with pytest.raises(ValueError, match=r"a decoder with heads=\(\)"):
        model.apply({"params": params}, jnp.ones((1, 16)), method="logits")


def test_outputs_are_what_the_methods_give(build, forward):
    model, params = build("encoder", heads_of("encoder"), **{"head.labels": 3})
    batch = {"tokens": TOKENS, "segment_ids": np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0]])}
    outputs = forward(model, params, batch, method="outputs")

    def run(name):
        return model.apply({"params": params}, name, outputs["hidden"], batch, method="head")

    for name in ("pooler", "tagger", "classifier"):
        np.testing.assert_allclose(outputs[name], run(name), atol=1e-5)
    start, end = run("span")
    np.testing.assert_allclose((outputs["start"], outputs["end"]), (start, end), atol=1e-5)
    assert outputs["start"].shape == TOKENS.shape
    assert np.abs(start - end).max() > 0.01


def test_padding_changes_no_label(build, forward):
    """Padding on the right of an encoder's row, and on either side of a decoder's, whose last token is read."""
    for architecture, sides in (("encoder", (0,)), ("decoder", (0, 2))):
        model, params = build(architecture, ("classifier",), num_layers=1)
        alone = forward(model, params, {"tokens": TOKENS}, method="outputs")["classifier"]
        for before in sides:
            around = ((0, 0), (before, 2))
            batch = {"tokens": np.pad(TOKENS, around), "segment_ids": np.pad(np.ones_like(TOKENS), around)}
            batch["positions"] = np.pad(np.tile(np.arange(6), (2, 1)), around)
            padded = forward(model, params, batch, method="outputs")["classifier"]
            np.testing.assert_allclose(padded, alone, atol=1e-5, err_msg=f"{architecture}, {before} before")


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_chosen_positions_are_those_of_all(build, tied):
    fields = {"head.transform": True, "head.bias": True, "head.tied": tied}
    model, params = build("encoder", ("masked_lm",), **fields)
    hidden = jax.random.normal(jax.random.key(0), (2, 6, 16))
    logits = functools.partial(model.apply, {"params": params}, method="logits")
    np.testing.assert_allclose(logits(hidden[1, 2:5]), logits(hidden)[1, 2:5], atol=1e-5)


def test_a_soft_cap_bounds_the_logits(build, forward):
    model, params = build("decoder", **{"head.bias": True})
    capped = LanguageModel(model.config.model_copy(update={"head.softcap": 1.0}))
    logits = forward(model, params, {"tokens": TOKENS}, method="outputs")["logits"]
    assert np.abs(logits).max() > 2
    expected = np.tanh(np.asarray(logits, np.float64))
    outputs = forward(capped, params, {"tokens": TOKENS}, method="outputs")
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "back"),
    [
        ({"head.transform": True}, {"transform"}),
        ({}, {"project_out"}),
        ({"head.tied": False}, {"output"}),
    ],
)
def test_factorised_embeddings_are_narrow_tables_and_a_projection(build, forward, fields, back):
    model, params = build(
        "encoder", ("masked_lm",), **{"embedding.dim": 6, "embedding.norm": True, "embedding.types": 2}, **fields
    )
    assert set(params) == {"embedding", "backbone"} | back
    inputs = params["backbone"]["inputs"]
    assert params["embedding"]["table"].shape == (64, 6)
    assert inputs["positions"]["table"].shape == (16, 6)
    # ALBERT's order: the tables are added, normalised and then projected (Lan et al. 2020, section 3.1).
    x = params["embedding"]["table"][TOKENS] + inputs["positions"]["table"][None, :6] + inputs["types"]["table"][0]
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * inputs["norm"]["scale"] + inputs["norm"]["bias"]
    project = params["backbone"]["project_in"]
    sequence = forward(model, params, {"tokens": TOKENS}, method=_entering)
    np.testing.assert_allclose(sequence, x @ project["kernel"] + project["bias"], atol=1e-4)
    outputs = forward(model, params, {"tokens": TOKENS}, method="outputs")
    if back == {"project_out"}:
        narrow = np.asarray(outputs["hidden"]) @ params["project_out"]["kernel"] + params["project_out"]["bias"]
        np.testing.assert_allclose(outputs["logits"], narrow @ params["embedding"]["table"].T, atol=1e-3)


def _entering(model, batch):
    """Returns the input of a model's stack."""
    return model.backbone.sequence(batch, DropoutRates()).x


def test_the_generator_is_a_model_of_its_own_on_the_same_tables(build, forward):
    fields = {"head.transform": True, "head.bias": True, "embedding.norm": True, "embedding.types": 2}
    model, params = build("encoder", ("generator",), **fields)
    assert set(params["generator"]) == {"backbone", "transform", "output_bias"}
    assert set(params["generator"]["backbone"]) == {"project_in", "stack"}, "tables and their norm are shared"
    small = LanguageModel(model.config.generator(), ("masked_lm",))
    backbone = params["generator"]["backbone"] | {"inputs": params["backbone"]["inputs"]}
    alone = params["generator"] | {"embedding": params["embedding"], "backbone": backbone}
    expected = forward(small, alone, {"tokens": TOKENS}, method="outputs")
    assert expected["hidden"].shape[-1] == 4, "a quarter of the width"
    outputs = forward(model, params, {"tokens": TOKENS}, method="outputs")
    np.testing.assert_allclose(outputs["generator_logits"], expected["logits"], atol=1e-5)
    generator = functools.partial(model.apply, {"params": params})
    hidden = generator(method=lambda m: m.part("generator").states({"tokens": TOKENS}, DropoutRates()))
    np.testing.assert_allclose(hidden, expected["hidden"], atol=1e-5)
    logits = generator(method=lambda m: m.part("generator").logits(hidden[1, 2:4]))
    np.testing.assert_allclose(logits, expected["logits"][1, 2:4], atol=1e-5, err_msg="of a choice of positions")


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
    rates = model.config.dropout.rates()
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
    rates = jax.tree.map(np.zeros_like, model.config.dropout.rates())
    exact = run(params, rates)
    for place in ("residual", "attention", "mlp", "output"):
        dropped = run(params, rates.replace(**{place: np.float32(0.5)}))
        assert (np.abs(dropped - exact).max(-1) > 0.001).mean() > 0.8, place
    np.testing.assert_allclose(dropped[dropped != 0], 2 * exact[dropped != 0], rtol=1e-5, err_msg="output: after all")
    assert 0.35 < (dropped == 0).mean() < 0.65


def test_bfloat16_computes_with_float32_parameters(build, forward):
    fields, heads = (
        {"embedding.types": 2, "head.transform": True},
        ("masked_lm", "next_sentence", "replaced_token", "generator"),
    )
    model, params = build("encoder", heads, **fields)
    half = LanguageModel(model.config.model_copy(update={"dtype": "bfloat16"}), heads)
    fresh = jax.eval_shape(lambda: init_params(half, jax.random.key(0)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(fresh)} == {"float32"}
    outputs = forward(half, params, {"tokens": TOKENS}, method="outputs")
    exact = forward(model, params, {"tokens": TOKENS}, method="outputs")
    assert outputs["hidden"].dtype == jnp.bfloat16
    for name in ("logits", "next_sentence", "replaced_token", "generator_logits"):
        assert outputs[name].dtype == jnp.float32
        rounded = np.asarray(outputs[name].astype(jnp.bfloat16), np.float32)
        if "logits" in name:
            assert np.mean(rounded != outputs[name]) > 0.5, f"{name} were rounded to bfloat16 on the way"
        scale = float(jnp.std(exact[name]))
        np.testing.assert_allclose(outputs[name], exact[name], atol=0.15 * scale, rtol=0, err_msg=name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_vocabulary_logits_of_bfloat16_are_sums_in_float32(build, architecture, tied):
    """A logit rounded to bfloat16 has an error of up to 1/256 of its value."""
    heads = ("masked_lm",) if architecture == "encoder" else ()
    model, params = build(architecture, heads, **{"head.tied": tied}, dtype="bfloat16")
    hidden = jax.random.normal(jax.random.key(0), (2, 6, 16), jnp.bfloat16)
    found = model.apply({"params": params}, hidden, method="logits")
    kernel = params["embedding"]["table"].T if tied else params["output"]["kernel"]
    halves = (np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (hidden, kernel))
    np.testing.assert_allclose(found, np.matmul(*halves), atol=1e-5)


def test_a_mesh_changes_no_value(build, forward):
    model, _ = build("encoder_decoder", positions="relative", num_layers=1, scan_layers=False)
    init = functools.partial(init_params, model)
    alone = nn.unbox(jax.jit(init)(jax.random.key(0)))
    batch = dict.fromkeys(("encoder_tokens", "decoder_tokens"), np.tile(TOKENS, (2, 1)))
    mesh = jax.make_mesh((2, 2, 1, 1, 2), axes.MESH_AXES, axis_types=(AxisType.Auto,) * 5)
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
