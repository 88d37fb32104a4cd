"""Calling a loaded model: its arrays equal those of one pass over each text alone; wrong arguments are errors."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lmjax.errors import FlagError
from lmjax.model.language_model import LanguageModel
from tests.inference.scoring import tiny

FAMILIES = ("encoder", "decoder", "encoder_decoder")
TEXTS = ["The young king goes under the old tree", "A queen", "kings and"]
ALL = {"output_hidden_states": True, "output_attentions": True}
ROPE = {"positions": "rope", "num_layers": 2}


def leaves(output, row: int) -> dict[str, np.ndarray]:
    """Returns the arrays of one text, without padding, by name."""
    kept, inner = output.mask[row], output.encoder and leaves(output.encoder, row)
    found = {"tokens": output.tokens[row][kept], "hidden": output.hidden[row][kept]}
    if output.logits is not None:
        found["logits"] = output.logits[row][kept]
    found |= {f"states {i}": x[row][kept] for i, x in enumerate(output.hidden_states)}
    found |= {f"attention {i}": x[row][:, kept][:, :, kept] for i, x in enumerate(output.attentions)}
    found |= {f"cross {i}": x[row][:, kept][:, :, output.encoder.mask[row]]
              for i, x in enumerate(output.cross_attentions or ())}  # fmt: skip
    return found | {f"encoder {name}": x for name, x in (inner or {}).items()}


@functools.cache
def called(architecture: str):
    loaded = tiny(architecture, **ROPE)
    targets = {"targets": ["the river house", "kings", "A"]} if architecture == "encoder_decoder" else {}
    return loaded, targets, loaded(TEXTS, **targets, **ALL)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_text_does_not_depend_on_the_others_of_its_batch(architecture):
    loaded, targets, together = called(architecture)
    assert not together.mask[1].all()
    for i, text in enumerate(TEXTS):
        alone = loaded(text, **{name: texts[i] for name, texts in targets.items()}, **ALL)
        found, expected = leaves(together, i), leaves(alone, 0)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_arrays_are_those_of_a_whole_pass(architecture):
    loaded, _, output = called(architecture)
    prefix = "decoder_" if architecture == "encoder_decoder" else ""
    batch = {f"{prefix}tokens": output.tokens, f"{prefix}segment_ids": output.mask.astype(np.int32)}
    if output.encoder:
        own = output.encoder
        batch |= {"encoder_tokens": own.tokens, "encoder_segment_ids": own.mask.astype(np.int32)}
    expected = loaded.model.apply({"params": jax.device_get(loaded.params)}, batch, method=LanguageModel.outputs)
    np.testing.assert_allclose(output.hidden[output.mask], expected["hidden"][output.mask], atol=2e-5)
    np.testing.assert_allclose(output.logits[output.mask], expected["logits"][output.mask], atol=2e-4)
    assert len(output.hidden_states) == 1 + len(output.attentions) == 3
    assert (output.encoder is None) == (output.cross_attentions is None) == (architecture != "encoder_decoder")
    for side in filter(None, (output, output.encoder)):
        for weights in side.attentions:
            rows = np.moveaxis(weights, 1, -1)[side.mask]
            np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)
            seen = weights > 0
            causal = side is output and architecture != "encoder"
            length = weights.shape[-1]
            expected = np.tril(np.ones((length, length), bool)) if causal else np.ones((length, length), bool)
            expected = expected & side.mask[:, None, :] & side.mask[:, :, None]
            both = side.mask[:, None, :, None] & side.mask[:, None, None, :]
            assert ((seen & both) == expected[:, None]).all()


def test_what_is_not_asked_for_is_not_there():
    output = called("decoder")[0](TEXTS[0])
    assert (output.hidden_states, output.attentions, output.cross_attentions, output.encoder) == (None,) * 4
    assert len(output.heads) == 0
    assert output.hidden.dtype == output.logits.dtype == np.float32
    with pytest.raises(dataclasses.FrozenInstanceError):
        output.hidden = None


def test_ids_are_taken_as_they_are_and_a_text_gets_what_stands_around_it():
    loaded, _, output = called("encoder")
    ids = loaded.encode(TEXTS)
    tokenizer = loaded.tokenizer
    assert ids[0] == loaded.encode(TEXTS[0]) == [tokenizer.cls_id, *tokenizer.encode(TEXTS[0]), tokenizer.sep_id]
    assert output.tokens[0][output.mask[0]].tolist() == ids[0]
    np.testing.assert_array_equal(loaded(ids, **ALL).hidden, output.hidden)
    np.testing.assert_array_equal(loaded(np.array(ids[0])).tokens, loaded(ids[0]).tokens)
    assert loaded.decode(ids[0]) == TEXTS[0]
    assert loaded.decode(output.tokens[:2]) == TEXTS[:2]


def test_a_prefix_is_seen_from_both_sides():
    plain = called("decoder")[0]
    both = dataclasses.replace(plain, prompts=dataclasses.replace(plain.prompts, bidirectional=True))
    weights = both(TEXTS[0], **ALL).attentions[0][0, :, 0]
    assert (weights[:, :3] > 0).all()


def test_rows_are_split_over_devices():
    output = tiny("decoder", devices=4, **ROPE)(TEXTS, **ALL)
    expected = called("decoder")[2]
    assert output.hidden.shape == expected.hidden.shape
    np.testing.assert_allclose(output.attentions[1], expected.attentions[1], atol=2e-5)


WRONG = {
    "nothing": ([], {}, "texts: is empty"),
    "a number": (3, {}, "texts is '3'; give a text"),
    "numbers of another kind": ([[0.5]], {}, r"texts\[0\]: id 0.5 is not in the vocabulary"),
    "an empty text": (["A", " "], {}, r"texts\[1\] is empty"),
    "an id": ([[500]], {}, r"texts\[0\]: id 500 is not in the vocabulary; ids go from 0 to 191"),
    "too long": ("king " * 20, {}, r"texts\[0\] has \d+ tokens, and the model's rows have 16; shorten it"),
    "targets": ("A", {"targets": "B"}, "only an encoder-decoder reads a second text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_gets_a_sentence(case):
    texts, options, message = WRONG[case]
    with pytest.raises(FlagError, match=message):
        called("decoder")[0](texts, **options)


def test_targets_are_one_for_each_text():
    with pytest.raises(FlagError, match="there are 1 for 3 texts"):
        called("encoder_decoder")[0](TEXTS, targets=["A"])
    assert called("encoder_decoder")[0](TEXTS).tokens[:, :2].tolist() == [[0, 0]] * 3


@pytest.mark.parametrize(("ids", "message"), [("text", "not a list"), ([999], "999 is not an"), ([0.5], "0.5 is not")])
def test_what_cannot_be_decoded(ids, message):
    with pytest.raises(FlagError, match=message):
        called("decoder")[0].decode(ids)
    with pytest.raises(FlagError, match="is not a text; encode takes"):
        called("decoder")[0].encode([3])
