"""Next-token windows: each token and each EOS is predicted once, from the tokens that really precede it."""

import jax
import jax.numpy as jnp
import numpy as np


def windows(examples):
    """Returns the windows of all rows as (inputs, targets, positions), one for each segment."""
    found = []
    for i in range(len(examples)):
        f = examples(i, np.random.default_rng(0))
        for segment in range(1, f["segment_ids"].max() + 1):
            at = f["segment_ids"] == segment
            assert f["weights"][at].all(), "an input without a target"
            found.append(tuple(f[k][at].tolist() for k in ("tokens", "targets", "positions")))
        assert not f["weights"][f["segment_ids"] == 0].any(), "padding is predicted"
    return found


def test_short_documents_share_a_row(make_store, make_task, ids):
    examples = make_task("next_token", "decoder", length=10).examples(make_store([("abc", " d"), ("xy",)]), 0)
    assert len(examples) == 1
    f = examples(0, np.random.default_rng(0))
    first = [ids("BOS", "abc d"), ids("abc d", "EOS")]
    second = [ids("BOS", "xy"), ids("xy", "EOS")]
    if f["tokens"][1] == ids("x")[0]:  # the order within a row is random
        first, second = second, first
    assert f["tokens"].tolist() == first[0] + second[0] + ids("PAD")
    assert f["targets"].tolist() == first[1] + second[1] + ids("PAD")
    assert f["weights"].tolist() == [1] * 9 + [0]
    assert f["positions"].tolist() == [*range(len(first[0])), *range(len(second[0])), 0]
    assert f["segment_ids"].tolist() == [1] * len(first[0]) + [2] * len(second[0]) + [0]


def test_long_document_goes_on_from_its_own_last_token(make_store, make_task, ids):
    # 17 tokens and EOS give 18 targets: 8 + 8 + 2.
    examples = make_task("next_token", "decoder", length=8).examples(make_store([("abcdefghijklmnopq",)]), 0)
    assert sorted(windows(examples)) == sorted(
        [
            (ids("BOS", "abcdefg"), ids("abcdefgh"), [*range(8)]),
            (ids("hijklmno"), ids("ijklmnop"), [*range(8)]),
            (ids("pq"), ids("q", "EOS"), [0, 1]),
        ]
    )


def test_end_that_is_alone_in_its_window_is_predicted_from_the_last_token(make_store, make_task, ids):
    examples = make_task("next_token", "decoder", length=8).examples(make_store([("abcdefgh",)]), 0)
    assert (ids("h"), ids("EOS"), [0]) in windows(examples)


def test_document_of_one_token(make_store, make_task, ids):
    examples = make_task("next_token", "decoder", length=8).examples(make_store([("a",)]), 0)
    assert windows(examples) == [(ids("BOS", "a"), ids("a", "EOS"), [0, 1])]


def test_every_token_and_every_end_is_a_target_exactly_once(corpus, make_task, ids):
    """The plan gives the position of each target in its document, so a token predicted twice or never is found."""
    examples = make_task("next_token", "decoder", length=48).examples(corpus, 3)
    times = [np.zeros(n + 1, int) for n in corpus.lengths]
    for i in range(len(examples)):
        f, column = examples(i, np.random.default_rng(0)), 0
        for document, start, length in examples.rows.bounds(i):
            text = [*ids("BOS"), *corpus.document(document).tolist(), *ids("EOS")]
            assert f["tokens"][column : column + length].tolist() == text[start : start + length]
            assert f["targets"][column : column + length].tolist() == text[start + 1 : start + length + 1]
            times[document][start : start + length] += 1
            column += length
        assert f["weights"].sum() == column
    assert all((t == 1).all() for t in times)


def test_rows_are_full(corpus, make_task):
    examples = make_task("next_token", "decoder", length=48).examples(corpus, 0)
    assert (corpus.num_tokens + corpus.num_documents) / (48 * len(examples)) > 0.98


def test_loss_is_taken_at_every_target(make_task, forward_of):
    task = make_task("next_token", "decoder", length=8, vocab_chunk=3)
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 8, 6)), jnp.float32)
    batch = {"targets": rng.integers(6, size=(2, 8)), "weights": np.ones((2, 8), np.float32)}
    batch["weights"][1, 5:] = 0
    batch = jax.tree.map(jnp.asarray, batch)
    sums = task.losses(forward_of(batch, states=logits, logits=lambda h: h), batch)["next_token"]
    picked = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(batch["targets"])[..., None], -1)
    np.testing.assert_allclose(sums.loss, -(picked[..., 0] * batch["weights"]).sum(), rtol=1e-5)
    assert task.weights(batch)["next_token"] == 13
