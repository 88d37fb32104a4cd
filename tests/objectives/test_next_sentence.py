"""Next sentence: labels are true and balanced, B is not cut at its start, and lengths do not reveal the label."""

import jax
import numpy as np
import pytest

from lmjax.errors import DataError
from lmjax.objectives.next_sentence import NextSentenceConfig, sentence_groups

LENGTH = 64


def parts(f, tokenizer):
    """Returns the texts of A and B; checks all other tokens and features."""
    length = int((f["segment_ids"] > 0).sum())
    types = f["type_ids"][:length].tolist()
    in_a = types.index(1)
    tokens = f["tokens"].tolist()
    assert types == [0] * in_a + [1] * (length - in_a)
    assert not f["type_ids"][length:].any()
    assert tokens[0] == tokenizer.cls_id
    assert tokens[in_a - 1] == tokens[length - 1] == tokenizer.sep_id
    assert tokens[length:] == [tokenizer.pad_id] * (len(tokens) - length)
    assert f["positions"].tolist() == [*range(length), *[0] * (len(tokens) - length)]
    assert f["segment_ids"].tolist() == [1] * length + [0] * (len(tokens) - length)
    assert f["next_sentence_weights"] == 1
    return tokenizer.decode(tokens[1 : in_a - 1]), tokenizer.decode(tokens[in_a : length - 1])


def test_runs_of_sentences_by_hand(make_store):
    """Budget 10: 4, 3, 3, 2, 9, 2, 1 tokens make [4 3 3], [2 9] (at least two), [2 1]; one sentence makes no group."""
    store = make_store([("aaaa", "bbb", "ccc", "dd", "eeeeeeeee", "ff", "g"), ("alone",), ("x", "y", "z")])
    assert sentence_groups(store, 10).tolist() == [[0, 0, 3], [0, 3, 5], [0, 5, 7], [2, 0, 3]]


def test_features_by_hand(make_store, make_task, ids, rng_of):
    store = make_store([("abc", "de"), ("vw", "xyz")])
    f = make_task("nsp", "encoder", length=10, nsp=NextSentenceConfig(random_rate=0)).examples(store, 0)(0, rng_of(0))
    assert {k: v.tolist() for k, v in f.items()} == {
        "tokens": ids("CLS", "abc", "SEP", "de", "SEP", "PAD", "PAD"),
        "positions": [0, 1, 2, 3, 4, 5, 6, 7, 0, 0],
        "segment_ids": [1] * 8 + [0, 0],
        "type_ids": [0, 0, 0, 0, 0, 1, 1, 1, 0, 0],
        "next_sentence_labels": 0,
        "next_sentence_weights": 1,
    }
    f = make_task("nsp", "encoder", length=10, nsp=NextSentenceConfig(random_rate=1)).examples(store, 0)(0, rng_of(0))
    assert f["tokens"].tolist() == ids("CLS", "abc", "SEP", "xyz", "SEP", "PAD")
    assert f["next_sentence_labels"] == 1


@pytest.fixture(scope="module")
def many(corpus, make_task, tokenizer, rng_of):
    """10,000 examples as (document, A, B, label)."""
    examples = make_task("nsp", "encoder", length=LENGTH).examples(corpus, 0)
    found = []
    for i in range(10_000):
        epoch, index = divmod(i, len(examples))
        f = examples(index, rng_of(index, epoch))
        found.append((examples.rows.groups[index, 0], *parts(f, tokenizer), int(f["next_sentence_labels"])))
    return found


def test_labels_are_true_and_truncation_keeps_the_seam(many, sentences):
    texts = ["".join(s) for s in sentences]
    everything = "\n".join(texts)
    for document, a, b, label in many:
        assert a
        assert b
        assert a in texts[document]
        if label == 0:
            assert a + b in texts[document], "B does not follow A, and the label says it does"
        else:
            assert b in everything
            assert b not in texts[document], "B comes from A's own document"


def test_pairs_are_in_balance(many, within):
    assert within(sum(label for *_, label in many), len(many), 0.5)


def test_truncated_pairs_are_as_long_as_they_can_be(many):
    room = LENGTH - 3
    assert max(len(a) + len(b) for _, a, b, _ in many) == room
    for document, a, b, _ in many:
        if len(a) + len(b) < room:
            assert a.startswith(" "), "A was truncated although it fits"
            assert b.endswith("."), f"B was truncated although it fits (document {document})"


def test_lengths_do_not_give_the_label_away(make_store, make_task, rng_of):
    """Fits the best rule over (length of both, length of B) on half of the pairs, and tests it on the other half."""
    rng = np.random.default_rng(0)
    documents = [tuple(c * n + "." for n in rng.integers(3, 16, 150)) for c in "abcdefghij"]
    examples = make_task("nsp", "encoder", length=LENGTH).examples(make_store(documents), 0)
    found = [examples(i % len(examples), rng_of(i % len(examples), i // len(examples))) for i in range(4000)]
    lengths = np.array([((f["segment_ids"] > 0).sum(), f["type_ids"].sum()) for f in found]) // 8
    labels = np.array([f["next_sentence_labels"] for f in found])
    table = np.zeros((*(lengths.max(0) + 1), 2))
    np.add.at(table, (*lengths[:2000].T, labels[:2000]), 1)
    guess = table[tuple(lengths[2000:].T)].argmax(-1)
    assert (guess == labels[2000:]).mean() < 0.6, "the model can tell the label from lengths alone"


def test_boilerplate_is_never_called_random(make_store, make_task, tokenizer, rng_of):
    """Two documents with the same beginning: truncated to a row, text of the other can equal the true continuation."""
    head = " one two three four five six seven."
    documents = [(" licence.", head + f" {c * 9}.", f" {c * 5}.") for c in "xyz"]
    documents.append((" quite", " another", " text."))
    examples = make_task("nsp", "encoder", length=24, nsp=NextSentenceConfig(random_rate=1)).examples(
        make_store(documents), 0
    )
    for epoch in range(200):
        a, b = parts(examples(0, rng_of(0, epoch)), tokenizer)
        assert a + b not in "".join(documents[examples.rows.groups[0, 0]]), "a true pair is labelled as random"


def test_one_large_document_beside_a_small_one(make_store, make_task, tokenizer, rng_of):
    """The other document is found even if its sentences are rare."""
    large = tuple(f" {c}{d}{e}." for c in "abcdefghij" for d in "abcdefghij" for e in "abcdefghij")
    examples = make_task("nsp", "encoder", length=8, nsp=NextSentenceConfig(random_rate=1)).examples(
        make_store([large, (" zz.", " yy.")]), 0
    )
    assert len(examples) > 400
    for index in range(0, 400, 10):
        assert parts(examples(index, rng_of(index)), tokenizer)[1] in " yy."


def test_sentence_longer_than_the_row(make_store, make_task, tokenizer, rng_of):
    documents = [("a" * 100, "b" * 100), ("c" * 100, "d" * 3)]
    examples = make_task("nsp", "encoder", length=20, nsp=NextSentenceConfig(random_rate=0)).examples(
        make_store(documents), 0
    )
    assert parts(examples(0, rng_of(0)), tokenizer) == ("a" * 9, "b" * 8)
    assert parts(examples(1, rng_of(1)), tokenizer) == ("c" * 14, "d" * 3)


@pytest.mark.parametrize("documents", [[("a", "b", "c")], [("a", "b"), ("alone",)]])
def test_too_few_documents(documents, make_store, make_task):
    with pytest.raises(DataError, match="nsp needs at least two documents of two sentences or more; the data has 1"):
        make_task("nsp", "encoder", length=8).examples(make_store(documents), 0)


def test_documents_that_are_all_alike(make_store, make_task, rng_of):
    examples = make_task("nsp", "encoder", length=8, nsp=NextSentenceConfig(random_rate=1)).examples(
        make_store([("a", "b"), ("a", "b")]), 0
    )
    with pytest.raises(DataError, match="more than one distinct document"):
        examples(0, rng_of(0))


def test_masking_leaves_the_pair_as_it_is(corpus, make_task, rng_of, tokenizer):
    """With mlm,nsp the pair is made first, with the same random numbers, and both texts are masked."""
    pair = make_task("nsp", "encoder", length=LENGTH).examples(corpus, 0)
    both = make_task("nsp,mlm", "encoder", length=LENGTH).examples(corpus, 0)
    assert [o.name for o in both.task.objectives] == ["mlm", "nsp"]
    types = []
    for i in range(200):
        plain, f = pair(i, rng_of(i)), both(i, rng_of(i))
        at = f["prediction_positions"][f["weights"] > 0]
        unmasked = f["tokens"].copy()
        unmasked[at] = f["targets"][: len(at)]
        for name, array in plain.items():
            np.testing.assert_array_equal(unmasked if name == "tokens" else f[name], array)
        assert tokenizer.is_text[plain["tokens"][at]].all()
        types += f["type_ids"][at].tolist()
    assert 0.3 < np.mean(types) < 0.7, "only one of A and B is masked"


def test_loss_is_that_of_the_pairs(make_task, forward_of):
    task = make_task("nsp", "encoder", length=8)
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]], np.float32)
    batch = {
        "next_sentence_labels": np.array([0, 0, 0], np.int32),
        "next_sentence_weights": np.array([1, 1, 0], np.float32),  # the last row is padding
    }
    sums = jax.jit(lambda x: task.losses(forward_of(batch, states=x, next_sentence=lambda h: h), batch)["nsp"])(logits)
    np.testing.assert_allclose(sums.loss, np.log1p(np.exp(-2)) + np.log1p(np.exp(1)), rtol=1e-6)
    assert (sums.weight, sums.correct) == (2, 1)
    assert task.weights(batch)["nsp"] == 2
