"""Activations of a loaded model are recorded and replaced by name, and nothing changes where none is replaced."""

import dataclasses

import jax
import numpy as np
import pytest

from lmjax.analysis import patch, record
from lmjax.errors import FlagError
from lmjax.model.groups import AttentionConfig
from lmjax.model.transformer import stack_layers
from tests.inference.scoring import tiny

TEXTS = ["The old king goes", "A queen"]
FAMILIES = {
    "encoder": {"architecture": "encoder", "num_layers": 2},
    "decoder": {"architecture": "decoder", "num_layers": 2},
    "blockwise": {"architecture": "decoder", "num_layers": 2, "attention": AttentionConfig(kernel="blockwise")},
    "xla": {"architecture": "encoder", "num_layers": 2, "attention": AttentionConfig(kernel="xla")},
    "encoder_decoder": {"architecture": "encoder_decoder", "num_layers": 2},
}


@pytest.fixture(params=FAMILIES)
def case(request):
    """Returns a model, its texts for `record`, and the prefix of the names of the side that predicts."""
    loaded = tiny(**FAMILIES[request.param])
    paired = loaded.config.family.paired
    return loaded, {"targets": ["the river", "a tree"]} if paired else {}, "decoder/" if paired else ""


def test_recording_changes_no_bit_and_records_what_the_model_returns(case):
    loaded, more, side = case
    plain = loaded(TEXTS, output_hidden_states=True, output_attentions=True, **more)
    found = record(loaded, TEXTS, [f"{side}layer_*", f"{side}layer_*/attention/weights", "logits"], **more)
    assert list(found) == [f"{side}layer_0", f"{side}layer_1",
                           *(f"{side}layer_{i}/attention/weights" for i in range(2)), "logits"]  # fmt: skip
    np.testing.assert_array_equal(found["logits"], plain.logits)
    np.testing.assert_array_equal(found[f"{side}layer_1"], plain.hidden_states[2])
    np.testing.assert_array_equal(found[f"{side}layer_0/attention/weights"], plain.attentions[0])
    np.testing.assert_array_equal(patch(loaded, TEXTS, {}, **more)["logits"], plain.logits)


def test_a_patched_value_is_that_of_the_other_texts(case):
    """All texts with the last layer's output of the first text have its outputs; a function and a value agree."""
    loaded, more, side = case
    name = f"{side}layer_1"
    found = record(loaded, TEXTS, [name, "logits"], **more)
    taken = patch(loaded, TEXTS, {name: found[name][:1]}, **more)["logits"]
    np.testing.assert_allclose(taken[1], found["logits"][0], atol=1e-5)
    turned = {"value": found[name][..., ::-1], "function": lambda x: x[..., ::-1]}
    by_value, by_function = (patch(loaded, TEXTS, {name: each}, **more)["logits"] for each in turned.values())
    np.testing.assert_allclose(by_value, by_function, atol=1e-5)
    assert np.abs(by_value - found["logits"]).max() > 1e-2


def test_scanned_layers_are_read_like_unrolled_ones(case):
    loaded, more, side = case
    config = loaded.config.model_copy(update={"scan_layers": True})
    scanned = dataclasses.replace(
        loaded, model=loaded.model.clone(config=config), params=stack_layers(jax.device_get(loaded.params))
    )
    names = [f"{side}layer_*/attention/heads", "logits"]
    for name, value in record(scanned, TEXTS, names, **more).items():
        np.testing.assert_array_equal(value, record(loaded, TEXTS, [name], **more)[name])


def test_a_batch_may_be_fields_and_rows_need_not_divide_the_mesh(every_device):
    loaded = tiny("decoder", devices=8)
    expected = record(loaded, TEXTS, ["layer_0", "hidden"])
    fields = {name: x[:2] for name, x in loaded.rows(TEXTS).items()}
    for name, value in record(tiny("decoder"), fields, ["layer_0", "hidden"]).items():
        assert len(expected[name]) == 2
        np.testing.assert_allclose(expected[name], value, atol=1e-5)


@pytest.mark.parametrize(
    ("what", "changes", "message"),
    [
        (["layer_7"], {}, "no activation is called 'layer_7'; there are layer_0"),
        ("layer_0", {}, "is one text; give a list of names"),
        (None, {"logits": np.zeros(3)}, "no activation is called 'logits'"),
        (
            None,
            {"layer_0": np.zeros((2, 3))},
            r"'layer_0' has the shape \(2, 16, 16\), and its replacement has \(2, 3\)",
        ),
        (None, {"layer_0": lambda x: x[0]}, "return that shape"),
    ],
)
def test_what_is_not_there_is_refused(what, changes, message):
    with pytest.raises(FlagError, match=message):
        patch(tiny("decoder"), TEXTS, changes, what)


def test_a_batch_without_its_tokens_is_refused():
    with pytest.raises(FlagError, match=r"has no field 'decoder_tokens'"):
        record(tiny("encoder_decoder"), {"tokens": np.zeros((1, 4), np.int32)}, ["hidden"])
