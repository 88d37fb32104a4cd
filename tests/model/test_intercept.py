"""Named activations: recording changes nothing, and a replacement changes only what is computed from it."""

import jax
import numpy as np
import pytest

from lmjax.model.intercept import names, record, replace

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


def _branches(side="", cross=False):
    """Returns the residual stream and the branches of two layers."""
    kinds = ("attention", *(("cross_attention",) if cross else ()), "mlp")
    return {f"{side}layer_{i}{end}" for i in range(2) for end in ("", *(f"/{kind}" for kind in kinds))}


def test_every_layer_and_branch_has_a_name(case):
    name, model, params, batch = case
    both = name == "encoder_decoder"
    expected = _branches("encoder/") | _branches("decoder/", cross=True) if both else _branches()
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
    for fields in ({"scan_layers": True}, UNROLLED | {"remat": "full"}):
        other, stacked = build("decoder", **fields)
        with pytest.raises(ValueError, match="set scan_layers=False and remat='none'"):
            record(other, stacked, batch, ["layer_0"])
