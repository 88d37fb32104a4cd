"""Masked LM: the rates of the paper, whole words, and predictions at the positions that the loss reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from lmjax.objectives.masked_lm import MaskedLMConfig

LENGTH = 64


def original(f):
    """Returns the row before masking."""
    tokens, count = f["tokens"].copy(), int(f["weights"].sum())
    tokens[f["prediction_positions"][:count]] = f["targets"][:count]
    return tokens


def test_features_by_hand(make_store, make_task, ids):
    task = make_task(
        "mlm", "encoder", length=12, mlm=MaskedLMConfig(mask_rate=0.99, replace_by_mask=1, replace_by_random=0)
    )
    f = task.examples(make_store([("abc", "d"), ("xy",)]), 0)(0, np.random.default_rng(0))
    first, second = ids("abcd"), ids("xy")
    if f["targets"][0] == second[0]:  # the order within a row is random
        first, second = second, first
    row = [*ids("CLS"), *first, *ids("SEP", "CLS"), *second, *ids("SEP")]
    assert original(f).tolist() == [*row, *ids("PAD", "PAD")]
    assert f["positions"].tolist() == [*range(len(first) + 2), *range(len(second) + 2), 0, 0]
    assert f["segment_ids"].tolist() == [1] * (len(first) + 2) + [2] * (len(second) + 2) + [0, 0]
    # 6 text tokens at a rate of 0.99 give 5 or 6 predictions, with this generator 6; a row can have 12.
    at = [i for i, token in enumerate(row) if token not in ids("CLS", "SEP")]
    assert f["weights"].tolist() == [1] * 6 + [0] * 6
    assert f["prediction_positions"].tolist() == at + [0] * 6
    assert f["targets"].tolist() == first + second + ids("PAD") * 6
    assert f["tokens"][at].tolist() == ids("MASK") * 6


def test_long_document_is_cut_and_nothing_is_lost(make_store, make_task, ids, rng_of):
    text = "abcdefghijklmnopqrstuvwxyz"
    examples = make_task("mlm", "encoder", length=12).examples(make_store([(text,)]), 0)
    pieces = []
    for i in range(len(examples)):
        row = original(examples(i, rng_of(i)))
        assert row[0] == ids("CLS")[0]
        end = row.tolist().index(ids("SEP")[0])
        pieces.append(row[1:end].tolist())
    assert sorted(pieces) == [ids(text[:10]), ids(text[10:20]), ids(text[20:])]


def test_document_of_one_token(make_store, make_task, ids, rng_of):
    examples = make_task("mlm", "encoder", length=8).examples(make_store([("a",)]), 0)
    counts = []
    for i in range(400):
        f = examples(0, rng_of(0, epoch=i))
        assert original(f).tolist() == ids("CLS", "a", "SEP") + ids("PAD") * 5
        counts.append(f["weights"].sum())
    assert 0.07 < np.mean(counts) < 0.23, "without random rounding the rate on short rows is not 15 %"


@pytest.fixture(scope="module")
def many(corpus, make_task, rng_of):
    """10,000 examples, of about twelve epochs, as (row before masking, row after, predicted positions)."""
    examples = make_task("mlm", "encoder", length=LENGTH).examples(corpus, 0)
    found = []
    for i in range(10_000):
        epoch, index = divmod(i, len(examples))
        f = examples(index, rng_of(index, epoch))
        found.append((original(f), f["tokens"], f["prediction_positions"][f["weights"] > 0]))
    return examples, found


def test_rates_over_many_examples(many, tokenizer, ids, within):
    _, found = many
    text = sum(tokenizer.is_text[row].sum() for row, _, _ in found)
    before = np.concatenate([row[at] for row, _, at in found])
    after = np.concatenate([masked[at] for _, masked, at in found])
    total = len(before)
    assert within(total, text, 0.15)
    # A random letter equals the original in about one of 28 draws, because text_ids has every character once.
    same_by_chance = 1 / len(tokenizer.text_ids)
    assert within((after == ids("MASK")[0]).sum(), total, 0.8)
    assert within((after == before).sum(), total, 0.1 + 0.1 * same_by_chance)
    replaced = after[(after != ids("MASK")[0]) & (after != before)]
    assert within(len(replaced), total, 0.1 * (1 - same_by_chance))
    assert tokenizer.is_text[replaced].all(), "a token was replaced by a special token"
    assert set(replaced) == set(tokenizer.text_ids), "some tokens are never used as random replacements"


def test_every_place_is_predicted_and_only_text_is(many, tokenizer):
    _, found = many
    times = np.zeros(LENGTH)
    for row, masked, at in found:
        assert (np.diff(at) > 0).all(), "a position is predicted twice"
        assert tokenizer.is_text[row[at]].all(), "a special token is predicted"
        others = np.ones(LENGTH, bool)
        others[at] = False
        np.testing.assert_array_equal(masked[others], row[others])
        times[at] += 1
    assert times[0] == 0
    inner = times[1:-6] / len(found)
    assert inner.min() > 0.1
    assert inner.max() < 0.16


def test_epochs_mask_anew_and_the_same_epoch_masks_the_same(many, rng_of):
    examples, _ = many
    index, first = 3, examples(3, rng_of(3))
    for name, array in examples(index, rng_of(index)).items():
        np.testing.assert_array_equal(array, first[name])
    other = examples(index, rng_of(index, epoch=1))
    assert other["prediction_positions"].tolist() != first["prediction_positions"].tolist()
    np.testing.assert_array_equal(original(other), original(first))


def words_of(row, tokenizer):
    """Returns the positions of each word: letters and the space before them, or one full stop."""
    words, open_word = [], False
    for i, token in enumerate(row.tolist()):
        character = tokenizer.decode([token])
        if not character:
            open_word = False
        elif open_word and character.isalpha():
            words[-1].append(i)
        else:
            words.append([i])
            open_word = True
    return words


def test_whole_words_are_masked_or_left(corpus, make_task, tokenizer, rng_of):
    config = MaskedLMConfig(whole_word=True)
    examples = make_task("mlm", "encoder", length=256, mlm=config).examples(corpus, 0)
    words = [words_of(original(examples(i, rng_of(i))), tokenizer) for i in range(50)]
    hits, totals = np.zeros(10), np.zeros(10)
    predicted = text = 0
    for i in range(500):
        epoch, index = divmod(i, len(words))
        f = examples(index, rng_of(index, epoch))
        at = np.zeros(256, bool)
        at[f["prediction_positions"][f["weights"] > 0]] = True
        for word in words[index]:
            assert at[word].all() == at[word].any(), "a word is only partly masked"
            hits[len(word)] += at[word[0]]
            totals[len(word)] += 1
        assert at.sum() == f["weights"].sum() <= len(f["weights"]), "a position is predicted twice"
        predicted += at.sum()
        text += sum(map(len, words[index]))
    assert 0.145 < predicted / text < 0.151
    # Short words are drawn more often (as in BERT's release), but words of every length are drawn.
    rates = hits[totals > 500] / totals[totals > 500]
    assert len(rates) >= 8
    assert rates.min() > 0.1
    assert rates.max() < 0.3


def test_whole_words_do_not_run_across_documents(make_store, make_task, ids, rng_of):
    """Two documents without spaces share a row: [SEP] and [CLS] must separate their words."""
    config = MaskedLMConfig(whole_word=True, mask_rate=0.6, replace_by_mask=1, replace_by_random=0)
    examples = make_task("mlm", "encoder", length=10, mlm=config).examples(make_store([("abc",), ("xyz",)]), 0)
    seen = {tuple(examples(0, rng_of(0, e))["targets"].tolist()[:3]) for e in range(50)}
    assert seen == {tuple(ids("abc")), tuple(ids("xyz"))}


def test_row_without_text_has_no_prediction(make_task, tokenizer, rng_of):
    features = {"tokens": np.full(8, tokenizer.sep_id, np.int32), "segment_ids": np.ones(8, np.int32)}
    for whole_word in (False, True):
        task = make_task("mlm", "encoder", length=8, mlm=MaskedLMConfig(whole_word=whole_word))
        f = task.objectives[0].transform(features, rng_of(0))
        assert not f["weights"].any()
        np.testing.assert_array_equal(f["tokens"], features["tokens"])


def test_loss_reads_the_masked_positions_and_no_other(make_task, forward_of):
    task = make_task("mlm", "encoder", length=8, mlm=MaskedLMConfig(mask_rate=0.3))
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 8, 5)).astype(np.float32)
    batch = {
        "prediction_positions": np.array([[1, 4, 6], [7, 0, 0]], np.int32),
        "targets": np.array([[0, 3, 2], [4, 0, 0]], np.int32),
        "weights": np.array([[1, 1, 1], [1, 0, 0]], np.float32),
    }
    log_p = np.asarray(jax.nn.log_softmax(hidden.astype(np.float64)))
    expected = -(log_p[0, 1, 0] + log_p[0, 4, 3] + log_p[0, 6, 2] + log_p[1, 7, 4])

    @jax.jit
    def loss(h):
        arrays = jax.tree.map(jnp.asarray, batch)
        return task.losses(forward_of(arrays, states=h, logits=lambda x: x), arrays)["mlm"].loss

    value, gradient = jax.value_and_grad(loss)(hidden)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    rows, columns = np.nonzero(np.abs(gradient).sum(-1))
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 1), (0, 4), (0, 6), (1, 7)]
    assert task.weights(batch)["mlm"] == 4


def test_shares_above_one_are_refused():
    with pytest.raises(pydantic.ValidationError, match=r"replace_by_mask=0.8 and replace_by_random=0.3 .* lower one"):
        MaskedLMConfig(replace_by_random=0.3)
