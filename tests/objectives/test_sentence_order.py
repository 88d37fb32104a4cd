"""Sentence order: labels are true and balanced, and only the order of the parts reveals them."""

import numpy as np
import pytest

from lmjax.errors import DataError
from lmjax.objectives.sentence_order import SentenceOrderConfig

LENGTH = 64


def texts(f, tokenizer):
    """Returns the two texts of a row."""
    length = int((f["segment_ids"] > 0).sum())
    in_a = f["type_ids"][:length].tolist().index(1)
    tokens = f["tokens"].tolist()
    assert (tokens[0], tokens[in_a - 1], tokens[length - 1]) == (tokenizer.cls_id, tokenizer.sep_id, tokenizer.sep_id)
    return tokenizer.decode(tokens[1 : in_a - 1]), tokenizer.decode(tokens[in_a : length - 1])


def test_features_by_hand(make_store, make_task, ids, rng_of):
    store = make_store([("abc", "de")])
    for rate, tokens in ((0, ids("CLS", "abc", "SEP", "de", "SEP")), (1, ids("CLS", "de", "SEP", "abc", "SEP"))):
        task = make_task("sop", "encoder", length=10, sop=SentenceOrderConfig(swap_rate=rate))
        f = {name: array.tolist() for name, array in task.examples(store, 0)(0, rng_of(0)).items()}
        in_a = 5 - rate
        assert f == {
            "tokens": [*tokens, *ids("PAD", "PAD")],
            "positions": [0, 1, 2, 3, 4, 5, 6, 7, 0, 0],
            "segment_ids": [1] * 8 + [0, 0],
            "type_ids": [0] * in_a + [1] * (8 - in_a) + [0, 0],
            "next_sentence_labels": rate,
            "next_sentence_weights": 1,
        }


@pytest.fixture(scope="module")
def many(corpus, make_task, tokenizer, rng_of):
    """5,000 examples as (text of the document, A, B, label)."""
    examples = make_task("sop", "encoder", length=LENGTH).examples(corpus, 0)
    found = []
    for i in range(5000):
        epoch, index = divmod(i, len(examples))
        f = examples(index, rng_of(index, epoch))
        text = tokenizer.decode(corpus.document(int(examples.rows.groups[index, 0])))
        found.append((text, *texts(f, tokenizer), int(f["next_sentence_labels"])))
    return found


def test_labels_are_true(many):
    for text, a, b, label in many:
        first, second = (b, a) if label else (a, b)
        assert first in text
        # All sentences of the corpus differ, so a text occurs at one position only.
        assert text.index(second) >= text.index(first) + len(first)
        if len(first) + len(second) + 3 < LENGTH:
            assert first + second in text, "the parts are not consecutive"


def test_labels_are_in_balance(many, within):
    assert within(sum(label for *_, label in many), len(many), 0.5)


def test_cut_parts_do_not_give_the_label_away(make_store, make_task, tokenizer, rng_of):
    """Two sentences that are too long for a row are cut at the same positions in both orders."""
    up, down = "abcdefghijklmnopqrstuvwxyz" * 4, "zyxwvutsrqponmlkjihgfedcba" * 4
    documents = [(up, down), (up, "ddd"), ("eee", down)]
    found = {}
    for rate in (0, 1):
        task = make_task("sop", "encoder", length=20, sop=SentenceOrderConfig(swap_rate=rate))
        examples = task.examples(make_store(documents), 0)
        found[rate] = [texts(examples(i, rng_of(i)), tokenizer) for i in range(3)]
    assert found[0] == [(up[:9], down[:8]), (up[:14], "ddd"), ("eee", down[:14])]
    assert found[1] == [(b, a) for a, b in found[0]]


def test_a_document_of_one_sentence_has_no_order(make_store, make_task):
    with pytest.raises(DataError, match="sop needs a document of two sentences or more"):
        make_task("sop", "encoder", length=16).examples(make_store([("alone",)]), 0)


def test_masking_leaves_the_pair_as_it_is(corpus, make_task, rng_of):
    pair = make_task("sop", "encoder", length=LENGTH).examples(corpus, 0)
    both = make_task("mlm,sop", "encoder", length=LENGTH).examples(corpus, 0)
    assert len(both.task.groups) == 1
    for i in range(50):
        plain, f = pair(i, rng_of(i)), both(i, rng_of(i))
        unmasked = f["tokens"].copy()
        count = int(f["weights"].sum())
        unmasked[f["prediction_positions"][:count]] = f["targets"][:count]
        for name, array in plain.items():
            np.testing.assert_array_equal(unmasked if name == "tokens" else f[name], array)
