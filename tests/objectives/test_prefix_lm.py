"""Prefix LM: the prefix is not predicted, all tokens after it are, and a text may be split anywhere."""

import numpy as np
import pytest

from lmjax.objectives.next_token import Windows

LENGTH, TARGET_LENGTH = 32, 16


def splits(f):
    """Returns (prefix, inputs, predicted) of each segment of a decoder's row."""
    found = []
    for s in range(1, f["segment_ids"].max() + 1):
        at = f["segment_ids"] == s
        found.append((f["prefix"][at], f["tokens"][at], f["targets"][at], f["weights"][at]))
    return found


def test_the_prefix_is_the_beginning_and_everything_after_it_is_predicted(corpus, make_task, rng_of):
    """The last token of the prefix predicts the first one after it; no token of the prefix is predicted."""
    examples = make_task("prefix_lm", "decoder", length=LENGTH).examples(corpus, 0)
    for i in range(0, len(examples), 7):
        # Except for the prefix, the windows are those of the next-token objective.
        f, window = examples(i, rng_of(i)), Windows.features(examples.rows, i, rng_of(i))
        for name in ("tokens", "targets", "positions", "segment_ids"):
            np.testing.assert_array_equal(f[name], window[name])
        assert not f["prefix"][f["segment_ids"] == 0].any()
        assert not f["weights"][f["segment_ids"] == 0].any()
        for prefix, tokens, targets, weights in splits(f):
            split = int(prefix.sum())
            assert 1 <= split <= len(tokens)
            assert prefix.tolist() == [1] * split + [0] * (len(tokens) - split)
            assert weights.tolist() == [0] * (split - 1) + [1] * (len(tokens) - split + 1)
            assert targets[:-1].tolist() == tokens[1:].tolist()


def test_every_split_is_equally_likely(make_store, make_task, rng_of, within):
    examples = make_task("prefix_lm", "decoder", length=10).examples(make_store([("abcdefgh",)]), 0)
    found = [int(examples(0, rng_of(0, epoch))["prefix"].sum()) for epoch in range(3000)]
    assert set(found) == set(range(1, 10))
    assert all(within(found.count(n), len(found), 1 / 9) for n in set(found))


def test_features_for_an_encoder_decoder(make_store, make_task, ids, rng_of):
    examples = make_task("prefix_lm", "encoder_decoder", length=8, target_length=8).examples(make_store([("abcd",)]), 0)
    seen = set()
    for epoch in range(50):
        f = {name: array.tolist() for name, array in examples(0, rng_of(0, epoch)).items()}
        split = f["encoder_segment_ids"].count(1) - 1
        assert f["encoder_tokens"] == [*ids("abcd"[:split], "EOS"), *ids("PAD") * (7 - split)]
        assert f["decoder_tokens"] == [*ids("PAD", "abcd"[split:]), *ids("PAD") * (3 + split)]
        assert f["targets"] == [*ids("abcd"[split:], "EOS"), *ids("PAD") * (3 + split)]
        assert f["weights"] == [1] * (5 - split) + [0] * (3 + split)
        assert "prefix" not in f
        seen.add(split)
    assert seen == {1, 2, 3}


@pytest.mark.parametrize("target_length", [8, 16, 48, 64])
def test_both_sides_together_are_the_text_and_fit_their_rows(target_length, corpus, make_task, tokenizer, rng_of):
    """In an epoch each token is once in a source or a target; a cost below the real length would overflow a row."""
    examples = make_task("prefix_lm", "encoder_decoder", length=48, target_length=target_length).examples(corpus, 0)
    times = [np.zeros(n, int) for n in corpus.lengths]
    filled = []
    for i in range(len(examples)):
        f = examples(i, rng_of(i))
        filled.append((f["encoder_segment_ids"] > 0).mean())
        for s, (document, start, length) in enumerate(examples.rows.bounds(i), 1):
            source = f["encoder_tokens"][f["encoder_segment_ids"] == s]
            target = f["targets"][(f["decoder_segment_ids"] == s) & (f["weights"] > 0)]
            assert source[-1] == target[-1] == tokenizer.eos_id
            assert len(target) > 1, "nothing is predicted"
            text = [*source[:-1], *target[:-1]]
            assert text == corpus.tokens(document, start, length).tolist()
            times[document][start : start + length] += 1
    assert all((t == 1).all() for t in times)
    assert np.mean(filled) > (0.3 if target_length >= 48 else 0.5)
