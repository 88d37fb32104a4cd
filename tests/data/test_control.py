"""Negative controls: what they change, what stays, and that they are refused where they have no meaning."""

import functools

import numpy as np
import pytest

from lmjax.data.control import ShuffledTokens, shuffled_labels
from lmjax.data.documents import Document
from lmjax.data.encoding import Encoder
from lmjax.errors import FlagError
from lmjax.objectives.registry import OBJECTIVES
from lmjax.runs.build import build

TEXTS = ["the quick brown fox jumps over the lazy dog. ", "a second sentence, rather longer than the first one."]


class Letters:
    """A tokenizer of letters."""

    def encode_batch(self, texts, threads):
        return [[ord(letter) for letter in text] for text in texts]

    def locate_batch(self, texts, threads):
        return [(np.array([*map(ord, text)], np.int32), np.arange(len(text))) for text in texts]


def encoded(document, seed=None):
    encoder = Encoder(Letters())
    encoder = encoder if seed is None else ShuffledTokens(encoder, seed)
    ((_, ids, ends),) = encoder([document])
    return ids.tolist(), ends.tolist()


def test_a_document_keeps_its_tokens_and_the_places_of_its_sentences_and_loses_their_order():
    document = Document(tuple(TEXTS), "mine")
    (plain, ends), (shuffled, same_ends) = encoded(document), encoded(document, 0)
    assert sorted(shuffled) == sorted(plain)
    assert same_ends == ends
    moved = np.mean(np.array(plain) != np.array(shuffled))
    assert moved > 0.8
    assert sorted(shuffled[: ends[0]]) != sorted(plain[: ends[0]]), "tokens go from one sentence to the other"


def test_the_order_is_that_of_the_seed_and_the_document():
    document = Document(tuple(TEXTS), "mine")
    assert encoded(document, 3) == encoded(document, 3)
    assert encoded(document, 3) != encoded(document, 4)
    assert encoded(document, 3) != encoded(document._replace(group="other"), 3)


@pytest.mark.parametrize("fields", [{"pair": True}, {"counts": (1, 1), "values": ("label",)}])
def test_of_a_pair_or_a_record_each_text_keeps_its_tokens(fields):
    document = Document(tuple(TEXTS), "mine", **fields)
    (plain, ends), (shuffled, same_ends) = encoded(document), encoded(document, 0)
    assert ends == same_ends
    for part in (slice(0, ends[0]), slice(ends[0], None)):
        assert sorted(plain[part]) == sorted(shuffled[part])
        assert plain[part] != shuffled[part]


def test_labels_are_exchanged_and_texts_stay():
    documents = [Document((f"text {i}",), str(i), counts=(1,), values=(i % 4,)) for i in range(40)]
    read = functools.partial(iter, documents)
    found = list(shuffled_labels(read, "train", 0)())
    assert [document.segments for document in found] == [document.segments for document in documents]
    assert sorted(document.values for document in found) == sorted(document.values for document in documents)
    assert np.mean([a.values == b.values for a, b in zip(found, documents, strict=True)]) < 0.5
    assert found == list(shuffled_labels(read, "train", 0)())
    assert found != list(shuffled_labels(read, "train", 1)())


LABELS = {"classification", "regression", "text_to_text", "kto"}
WITHOUT_TOKENS = {"tagging", "question_answering", "chat", "multiple_choice"}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_control_without_a_meaning_is_refused(tiny, objective):
    for control, allowed in (
        ("shuffled_tokens", objective not in WITHOUT_TOKENS),
        ("shuffled_labels", objective in LABELS),
    ):
        if allowed:
            tiny(objective, **{"data.control": control})
        else:
            with pytest.raises(FlagError, match=f"--config.data.control={control}: {objective}"):
                tiny(objective, **{"data.control": control})


def test_training_and_held_out_texts_of_a_run_are_shuffled_and_its_tokenizer_is_the_same(tiny, tmp_path):
    plain, control = (
        build(tiny(**{"data.control": control}), tmp_path / control) for control in ("none", "shuffled_tokens")
    )
    assert plain.tokenizer.fingerprint == control.tokenizer.fingerprint
    for name in ("train_examples", "eval_sets"):
        one, other = (getattr(run, name) for run in (plain, control))
        one, other = (each[0].examples if name == "eval_sets" else each for each in (one, other))
        one, other = one.rows.store, other.rows.store
        assert one.num_documents == other.num_documents
        for i in range(3):
            assert sorted(one.document(i)) == sorted(other.document(i))
            assert one.document(i).tolist() != other.document(i).tolist()
    again = build(tiny(seed=1, **{"data.control": "shuffled_tokens"}), tmp_path / "again")
    mine, other = (run.train_examples.rows.store.document(0).tolist() for run in (control, again))
    assert mine != other, "each seed has its own order"


def test_labels_of_a_run_are_exchanged_in_its_training_records_alone(tiny, tmp_path):
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"text number {i},{i % 3}\n" for i in range(60)))
    (tmp_path / "dev.csv").write_text("text,label\n" + "".join(f"text {i} of others,{i % 3}\n" for i in range(30)))
    fields = {"data.train": tmp_path / "data.csv", "data.eval": f"dev={tmp_path / 'dev.csv'}"}
    stores = {}
    for control in ("none", "shuffled_labels"):
        run = build(tiny("classification", **fields, **{"data.control": control}), tmp_path / control)
        stores[control] = run.train_examples.rows.store, run.eval_sets[0].examples.rows.store
    (train, held_out), (other, same) = stores["none"], stores["shuffled_labels"]
    labels = [[store.value(i, "label") for i in range(60)] for store in (train, other)]
    assert labels[0] != labels[1]
    assert sorted(labels[0]) == sorted(labels[1])
    assert all(train.document(i).tolist() == other.document(i).tolist() for i in range(60))
    assert [held_out.value(i, "label") for i in range(30)] == [same.value(i, "label") for i in range(30)]
