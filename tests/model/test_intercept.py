"""Named activations: recording changes nothing, and a replacement changes only what is computed from it."""

import re

import jax
import numpy as np
import pytest

from lmjax.model import intercept
from lmjax.model.groups import AttentionConfig, MoEConfig
from lmjax.model.intercept import names, record, replace
from lmjax.model.transformer import stack_layers

RNG = np.random.default_rng(3)
TOKENS = RNG.integers(0, 64, (2, 6))
UNROLLED = {"scan_layers": False}
ROPE = {"positions": "rope", "norm": "rmsnorm"}
MODELS = {
    "encoder": ("encoder", {"norm_position": "post"}),
    "decoder": ("decoder", {}),
    "sandwich": ("decoder", ROPE | {"norm_position": "sandwich"}),
    "shared": ("decoder", ROPE | {"share_layers": True}),
    "parallel": ("decoder", ROPE | {"block": "parallel"}),
    "experts": ("decoder", ROPE | {"moe": MoEConfig(num_experts=4, top_k=2)}),
    "encoder_decoder": ("encoder_decoder", {"positions": "relative"}),
}


def _case(name, build):
    """Returns the name of a model, the model, its parameters and a batch."""
    architecture, fields = MODELS[name]
    heads = ("masked_lm",) if architecture == "encoder" else ()
    model, params = build(architecture, heads, **(UNROLLED | fields))
    sides = ("encoder_", "decoder_") if architecture == "encoder_decoder" else ("",)
    return name, model, params, {f"{side}tokens": np.roll(TOKENS, i) for i, side in enumerate(sides)}


@pytest.fixture(params=MODELS)
def case(request, build):
    return _case(request.param, build)


def _branches(side="", cross=False, mlp="mlp"):
    """Returns the residual stream and the branches of two layers."""
    kinds = ("attention", *(("cross_attention",) if cross else ()), mlp)
    return {f"{side}layer_{i}{end}" for i in range(2) for end in ("", *(f"/{kind}" for kind in kinds))}


def test_every_layer_and_branch_has_a_name(case):
    name, model, params, batch = case
    both = name == "encoder_decoder"
    expected = (
        _branches("encoder/") | _branches("decoder/", cross=True)
        if both
        else _branches(mlp="moe" if name == "experts" else "mlp")
    )
    found = names(model, params, batch)
    assert expected < set(found)
    assert not {"", "encoder", "decoder"} & set(found)
    outputs, values = record(model, params, batch, expected)
    assert set(values) == expected
    assert {x.shape for x in values.values()} == {outputs.shape}


def test_nothing_changes_where_nothing_is_replaced(case):
    _, model, params, batch = case

    def plain(params, batch):
        return model.apply({"params": params}, batch)

    same = jax.make_jaxpr(lambda params, batch: replace(model, params, batch, {}))(params, batch)
    assert str(same) == str(jax.make_jaxpr(plain)(params, batch))
    outputs, _ = record(model, params, batch, names(model, params, batch))
    np.testing.assert_array_equal(outputs, plain(params, batch))


def test_what_is_recorded_adds_up_to_the_residual_stream(build):
    """Recorded values are those of the layers: a pre-norm layer adds its branches to its input."""
    model, params = build("decoder", **UNROLLED)
    found = record(model, params, {"tokens": TOKENS}, ["inputs", *_branches()])[1]
    x = found["inputs"]
    for i in range(2):
        x = x + found[f"layer_{i}/attention"] + found[f"layer_{i}/mlp"]
        np.testing.assert_allclose(found[f"layer_{i}"], x, atol=1e-5)


# By model: the activation that is replaced, and the activations that are computed from it.
FOLLOWING = [
    ("encoder", "layer_0/attention", {"layer_0", "layer_0/mlp", "layer_1", "layer_1/attention", "layer_1/mlp"}),
    ("decoder", "layer_0", {"layer_0", "layer_1", "layer_1/attention", "layer_1/mlp"}),
    ("decoder", "layer_1/attention", {"layer_1", "layer_1/mlp"}),
    ("decoder", "layer_1/mlp", {"layer_1"}),
    ("sandwich", "layer_0/mlp", {"layer_0", "layer_1", "layer_1/attention", "layer_1/mlp"}),
    # The same module as in layer 0, whose activations do not change.
    ("shared", "layer_1/attention", {"layer_1", "layer_1/mlp"}),
    # Both branches read the input of their layer.
    ("parallel", "layer_1/attention", {"layer_1"}),
    (
        "encoder_decoder",
        "encoder/layer_1/mlp",
        {"encoder/layer_1", *_branches("decoder/", cross=True)} - {"decoder/layer_0/attention"},
    ),
    ("encoder_decoder", "decoder/layer_1/cross_attention", {"decoder/layer_1", "decoder/layer_1/mlp"}),
]


@pytest.mark.parametrize(("name", "changed", "following"), FOLLOWING)
def test_a_replaced_activation_changes_what_follows_and_nothing_before(name, changed, following, build):
    _, model, params, batch = _case(name, build)
    watched = _branches("encoder/") | _branches("decoder/", cross=True) if "decoder/" in str(following) else _branches()
    outputs, before = record(model, params, batch, watched)
    new = np.asarray(RNG.normal(0, 2, before[changed].shape), np.float32)
    replaced, after = record(model, params, batch, watched, changes={changed: lambda _: new})
    np.testing.assert_array_equal(after[changed], new)
    differ = {name for name in watched if (np.asarray(before[name]) != np.asarray(after[name])).any()}
    assert differ == {changed, *following}
    assert np.abs(np.asarray(outputs - replaced)).max() > 1e-3


def test_a_change_of_one_token_reaches_no_token_before_it(build):
    """A replacement does not break causality, under jit and with the new values as an argument."""
    model, params = build("decoder", **UNROLLED)

    @jax.jit
    def steered(params, tokens, push):
        return replace(model, params, {"tokens": tokens}, {"layer_0": lambda x: x.at[:, 3, :8].add(push)})

    plain, pushed = (np.asarray(steered(params, TOKENS, push)) for push in (0.0, 2.0))
    np.testing.assert_array_equal(plain[:, :3], pushed[:, :3])
    assert (np.abs(plain - pushed)[:, 3:].max(axis=-1) > 1e-4).all()


def test_what_cannot_be_recorded_is_refused(build):
    model, params = build("decoder", **UNROLLED)
    batch = {"tokens": TOKENS}
    with pytest.raises(ValueError, match=r"no activation is called 'layer_2'; there are .*layer_1"):
        record(model, params, batch, ["layer_2"])
    with pytest.raises(ValueError, match="no activation is called 'layer_0/mpl'; there are layer_0/mlp"):
        replace(model, params, batch, {"layer_0/mpl": lambda x: x})
    with pytest.raises(ValueError, match=r"'layer_0' has the shape \(2, 6, 16\), and its change gives \(16,\)"):
        replace(model, params, batch, {"layer_0": lambda x: x[0, 0]})


def test_the_glossary_names_what_there_is(build):
    """Each name of the docstring's table is an activation of some family, of the shape that the table gives."""
    rows = re.findall(r"^\| `(.+?)` \| (?:`\[(.+?)\]`)?", intercept.__doc__, re.MULTILINE)
    told = {name.replace("layer_3", "layer_1"): shape.split(", ") for name, shape in rows}
    found = {}
    for each in MODELS:
        _, model, params, batch = _case(each, build)
        every = names(model, params, batch)
        for name, value in record(model, params, batch, every)[1].items():
            found[name.removeprefix("encoder/").removeprefix("decoder/")] = (value, model.config)
    for name, shape in told.items():
        value, config = found[name]
        sizes = {
            "batch": 2, "length": 6, "queries": 6, "keys": 6, "embed": config.embed_dim, "mlp": config.mlp_dim,
            "table width": config.embed_dim, "heads": config.num_heads, "head_dim": config.width_of_head,
            "experts": config.moe.num_experts, "top_k": config.moe.top_k,
        }  # fmt: skip
        assert shape == [""] or value.shape == tuple(1 if axis == "1" else sizes[axis] for axis in shape), name
    # Beside these, there are only the outputs of modules in layers, and the modules of the input embeddings.
    rest = {name for name in found if name.replace("layer_0", "layer_1") not in told}
    inner = ("norm", "query", "key", "value", "out", "up", "gate", "down", "relative_bias")
    odd = [n for n in rest if not n.endswith(inner) and "cross_attention/" not in n]
    assert not odd


@pytest.mark.parametrize("kernel", ["plain", "blockwise", "xla"])
def test_scores_weights_and_heads_follow_from_each_other_with_any_kernel(kernel, build):
    model, params = build("decoder", **UNROLLED, attention=AttentionConfig(kernel=kernel))
    inner = [f"layer_1/attention/{name}" for name in ("scores", "weights", "heads", "value")]
    batch = {"tokens": TOKENS}
    outputs, found = record(model, params, batch, [*inner, "layer_1/mlp", "layer_1/mlp/hidden"])
    scores, weights, heads, value = (np.asarray(found[name], np.float64) for name in inner)
    expected = np.exp(scores - scores.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_allclose(heads, np.einsum("bhqk,bkhd->bqhd", weights, value), atol=1e-5)
    down = params["backbone"]["stack"]["layer_1"]["mlp"]["down"]
    hidden = np.asarray(found["layer_1/mlp/hidden"])
    np.testing.assert_allclose(found["layer_1/mlp"], hidden @ down["kernel"] + down["bias"], atol=1e-4)
    # A replacement of the scores by themselves goes another way through the attention, to the same numbers.
    again, later = record(model, params, batch, [inner[2]], changes={inner[0]: lambda x: x})
    np.testing.assert_allclose(later[inner[2]], found[inner[2]], atol=1e-5)
    np.testing.assert_allclose(again, outputs, atol=1e-4)


def test_choices_of_a_router_are_those_that_make_its_output(build):
    """With the logits of one expert raised far above the others, it is chosen by all tokens."""
    _, model, params, batch = _case("experts", build)
    plain = record(model, params, batch, ["layer_0/moe/router", "layer_0/moe/choices"])[1]
    best = np.argsort(-np.asarray(plain["layer_0/moe/router"]), axis=-1, kind="stable")[..., :2]
    np.testing.assert_array_equal(plain["layer_0/moe/choices"], best)
    raised = {"layer_0/moe/router": lambda x: x.at[..., 3].add(50.0)}
    found = record(model, params, batch, ["layer_0/moe/choices"], changes=raised)[1]
    assert (np.asarray(found["layer_0/moe/choices"])[..., 0] == 3).all()
    with pytest.raises(ValueError, match="change the router instead"):
        replace(model, params, batch, {"layer_0/moe/choices": lambda x: x})


def test_scanned_and_recomputed_layers_are_unrolled(build):
    """The numbers are those of the unrolled model bit for bit, and of the scanned one up to rounding."""
    unrolled, params = build("decoder", **UNROLLED)
    scanned, _ = build("decoder", scan_layers=True, remat="full")
    batch, stacked = {"tokens": TOKENS}, stack_layers(params)
    expected, values = record(unrolled, params, batch, ["layer_0", "layer_1"])
    outputs, found = record(scanned, stacked, batch, ["layer_0", "layer_1"])
    np.testing.assert_array_equal(outputs, expected)
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value)
    np.testing.assert_allclose(outputs, scanned.apply({"params": stacked}, batch), atol=1e-5)
