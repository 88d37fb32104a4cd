"""Masked diffusion: its loss is the bound on the likelihood, shown by enumerating all masks and all orders of a row."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

LENGTH = 64
DIMS = 8


def masked(f):
    """Returns the positions of a row that are masked, according to its factors."""
    return tuple(f["prediction_positions"][f["factors"] > 0].tolist())


def original(f):
    """Returns the row before masking."""
    tokens, text = f["tokens"].copy(), f["weights"] > 0
    tokens[f["prediction_positions"][text]] = f["targets"][text]
    return tokens


@pytest.fixture(scope="module")
def outputs(tokenizer):
    """States and logits of a model whose predictions depend on all tokens of the same segment, and on no other."""
    rng = np.random.default_rng(0)
    token, place, mix, head = (
        jnp.asarray(rng.normal(0, scale, shape), jnp.float32)
        for scale, shape in (
            (1.5, (tokenizer.vocab_size, DIMS)),
            (1.5, (LENGTH, DIMS)),
            (1.5, (DIMS, DIMS)),
            (2, (DIMS, tokenizer.vocab_size)),
        )
    )

    def states(batch):
        own = jnp.tanh(token[batch["tokens"]] + place[batch["positions"]])
        same = (batch["segment_ids"][:, :, None] == batch["segment_ids"][:, None]).astype(jnp.float32)
        return jnp.tanh(own + (same @ own / same.sum(-1, keepdims=True)) @ mix)

    return {"states": states, "logits": lambda h: h @ head}


@pytest.fixture(scope="module")
def likelihoods(outputs, tokenizer):
    """Returns a function from a document to the log-likelihood of each order in which its tokens can be predicted."""

    def compute(ids):
        row = np.array([tokenizer.cls_id, *ids, tokenizer.sep_id], np.int32)
        places = range(1, 1 + len(ids))
        sets = [s for n in range(1, len(ids) + 1) for s in itertools.combinations(places, n)]
        rows = np.array([[tokenizer.mask_id if i in s else t for i, t in enumerate(row)] for s in sets], np.int32)
        at = np.broadcast_to(np.arange(len(row)), rows.shape)
        hidden = outputs["states"]({"tokens": rows, "positions": at, "segment_ids": np.ones_like(rows)})
        found = np.asarray(jax.nn.log_softmax(outputs["logits"](hidden)), np.float64)
        predicted = {s: found[i, np.arange(len(row)), row] for i, s in enumerate(sets)}
        return [
            sum(predicted[tuple(sorted(order[i:]))][order[i]] for i in range(len(order)))
            for order in itertools.permutations(places)
        ]

    return compute


@pytest.fixture(scope="module")
def drawn(make_store, make_task, forward_of, outputs, rng_of):
    """Returns a function from documents of one row to their task's row loss for each set of masks, and the draws."""

    def compute(documents, length, draws):
        task = make_task("masked_diffusion", "encoder", length=length)
        examples = task.examples(make_store(documents), 0)
        assert len(examples) == 1
        found, features = [], {}
        for epoch in range(draws):
            f = examples(0, rng_of(0, epoch))
            found.append(masked(f))
            features.setdefault(found[-1], f)
        rows = [{k: jnp.asarray(v)[None] for k, v in f.items()} for f in features.values()]

        @jax.jit
        def loss(batch):
            (sums,) = task.losses(forward_of(batch, **outputs), batch).values()
            return sums.loss / task.weights(batch)["masked_diffusion"]

        losses = dict(zip(features, map(float, map(loss, rows)), strict=True))
        return losses, found

    return compute


def enumerated(losses, count):
    """Returns the expected loss: the number of masks is uniform, and so is their set given the number."""
    assert len(losses) == 2**count - 1, "some sets of masks are never drawn"
    return sum(loss / (count * math.comb(count, len(s))) for s, loss in losses.items())


def test_the_expected_loss_is_the_mean_over_all_orders(drawn, likelihoods, ids):
    losses, found = drawn([("abca",)], 8, 4000)
    bound, orders = enumerated(losses, 4), likelihoods(ids("abca"))
    assert bound == pytest.approx(-np.mean(orders) / 4, rel=1e-5)
    assert np.std(orders) > 0.3, "the orders must differ for this to show anything"
    # The bound on the likelihood of a model that draws the order at random.
    mixture = -np.log(np.mean(np.exp(orders))) / 4
    assert mixture + 0.01 < bound
    values = [losses[s] for s in found]
    assert abs(np.mean(values) - bound) < 4 * np.std(values) / np.sqrt(len(values))
    assert np.std(values) > 0.1


def test_every_set_of_masks_is_drawn_as_often_as_it_should(drawn, within):
    _, found = drawn([("abca",)], 8, 4000)
    for s in set(found):
        assert within(found.count(s), len(found), 1 / (4 * math.comb(4, len(s))))


def test_a_packed_row_has_the_bounds_of_its_documents(drawn, likelihoods, ids):
    """A random order of the row is a random order of each document; padding changes nothing either."""
    expected = -sum(np.mean(likelihoods(ids(text))) for text in ("abc", "ba")) / 5
    for length in (9, 12):
        losses, _ = drawn([("abc",), ("ba",)], length, 3000)
        assert enumerated(losses, 5) == pytest.approx(expected, rel=1e-5)


def test_features_by_hand(make_store, make_task, ids, rng_of):
    examples = make_task("masked_diffusion", "encoder", length=12).examples(make_store([("abc", "d"), ("xy",)]), 0)
    seen = set()
    for epoch in range(60):
        f = examples(0, rng_of(0, epoch))
        at = masked(f)
        seen.add(len(at))
        row = [int(t) for t in original(f)]
        first, second = (ids("xy"), ids("abcd")) if row[1] == ids("x")[0] else (ids("abcd"), ids("xy"))
        assert row == [*ids("CLS"), *first, *ids("SEP", "CLS"), *second, *ids("SEP", "PAD", "PAD")]
        text = [i for i, t in enumerate(row) if t not in ids("CLS", "SEP", "PAD")]
        assert f["prediction_positions"].tolist() == text + [0] * 6
        assert f["targets"].tolist() == first + second + ids("PAD") * 6
        assert f["weights"].tolist() == [1] * 6 + [0] * 6
        np.testing.assert_allclose(f["factors"], [6 / len(at) if i in at else 0 for i in text] + [0] * 6)
        assert [i for i, t in enumerate(f["tokens"]) if t == ids("MASK")[0]] == list(at)
        assert f["tokens"][[i for i in range(12) if i not in at]].tolist() == [
            t for i, t in enumerate(row) if i not in at
        ]
    assert seen == {1, 2, 3, 4, 5, 6}


def test_all_mask_rates_are_as_frequent_and_only_text_is_masked(corpus, make_task, tokenizer, rng_of, within):
    examples = make_task("masked_diffusion", "encoder", length=LENGTH).examples(corpus, 0)
    rates, times, text = [], np.zeros(LENGTH), np.zeros(LENGTH)
    for i in range(4000):
        epoch, index = divmod(i, len(examples))
        f = examples(index, rng_of(index, epoch))
        at, row = list(masked(f)), original(f)
        assert tokenizer.is_text[row[at]].all(), "a special token is masked"
        assert (f["tokens"] == tokenizer.mask_id).sum() == len(at)
        assert f["factors"].sum() == pytest.approx(f["weights"].sum(), rel=1e-6)
        rates.append(len(at) / f["weights"].sum())
        times[at] += 1
        text += tokenizer.is_text[row]
    for part in np.histogram(rates, 4, (0, 1.0001))[0]:
        assert within(part, len(rates), 1 / 4) or abs(part / len(rates) - 1 / 4) < 0.03
    # The mean of l / L is (L + 1) / 2L.
    often = text > 1000
    assert np.abs(times[often] / text[often] - 0.51).max() < 0.05


def test_a_row_without_text_has_no_mask_and_no_weight(make_task, tokenizer, rng_of):
    features = {"tokens": np.full(8, tokenizer.sep_id, np.int32), "segment_ids": np.ones(8, np.int32)}
    f = make_task("masked_diffusion", "encoder", length=8).objectives[0].transform(features, rng_of(0))
    assert not f["weights"].any()
    assert not f["factors"].any()
    np.testing.assert_array_equal(f["tokens"], features["tokens"])


def test_loss_and_accuracy_are_weighted_by_the_inverse_mask_rate(make_task, forward_of):
    task = make_task("masked_diffusion", "encoder", length=8)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 8, 5)).astype(np.float32)
    batch = {
        "prediction_positions": np.array([[1, 2, 3, 5], [1, 2, 0, 0]], np.int32),
        "targets": np.array([[0, 3, 2, 1], [4, 2, 0, 0]], np.int32),
        "weights": np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.float32),
        "factors": np.array([[0, 2, 0, 2], [2, 0, 0, 0]], np.float32),
    }
    hidden[0, 5] = [0, 9, 0, 0, 0]
    log_p = np.asarray(jax.nn.log_softmax(hidden.astype(np.float64)))
    arrays = jax.tree.map(jnp.asarray, batch)

    @jax.jit
    def sums(h):
        return task.losses(forward_of(arrays, states=h, logits=lambda x: x), arrays)["masked_diffusion"]

    found = sums(hidden)
    np.testing.assert_allclose(found.loss, -2 * (log_p[0, 2, 3] + log_p[0, 5, 1] + log_p[1, 1, 4]), rtol=1e-5)
    right = [hidden[0, 2].argmax() == 3, True, hidden[1, 1].argmax() == 4]
    assert found.correct == 2 * sum(right) > 0
    assert found.weight == task.weights(batch)["masked_diffusion"] == 6
    gradient = jax.grad(lambda h: sums(h).loss)(hidden)
    rows, columns = np.nonzero(np.abs(gradient).sum(-1))
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 2), (0, 5), (1, 1)]
    ids, weights = task.token_targets(batch)["masked_diffusion"]
    assert weights.sum() == 6, "bits per byte must count the bytes of all of the text"
    assert ids is batch["targets"]
