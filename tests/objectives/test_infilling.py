"""Text infilling: one mask for a span of any length, the rates of BART, and the whole text as the target."""

import numpy as np
import pytest

from lmjax.objectives.infilling import InfillingConfig, mask_spans, span_lengths

MASK = 7


def matches(source, text):
    """Returns whether the source becomes the text if each mask is replaced by a span, which may be empty."""
    parts = [[]]
    for token in source:
        if token == MASK:
            parts.append([])
        else:
            parts[-1].append(token)
    place = len(parts[0])
    if text[:place] != parts[0]:
        return False
    for part in parts[1:]:
        # All tokens of the text differ here, so the token after a mask has one position in the text.
        if part:
            start = text.index(part[0]) if part[0] in text else -1
            if start < place or text[start : start + len(part)] != part:
                return False
            place = start + len(part)
    return place == len(text) or source[-1] == MASK


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("mean", [0.5, 3.0, 30.0])
def test_a_source_is_its_text_with_holes_and_never_longer(rate, mean):
    config, rng = InfillingConfig(mask_rate=rate, mean_span_length=mean), np.random.default_rng(0)
    for n in [1, 2, 3, 4, 5, 8, 20, 100] * 5:
        text = np.arange(100, 100 + n)
        source = mask_spans(text, config, MASK, rng).tolist()
        assert matches(source, text.tolist())
        assert len(source) <= n
        assert MASK in source
        assert sum(t != MASK for t in source) == n - max(1, round(n * rate)), "too many or too few removed"


def test_rates_are_those_of_the_paper():
    """30 % of the tokens are removed, in spans of 3 on average, and one span in twenty is empty."""
    rng = np.random.default_rng(0)
    lengths = np.concatenate([span_lengths(300, 3.0, rng) for _ in range(400)])
    assert abs(lengths.mean() - 3) < 0.05
    for k in range(6):
        poisson = np.exp(-3.0) * 3.0**k / np.prod(np.arange(1, k + 1))
        assert abs((lengths == k).mean() - poisson) < 0.01


def test_lengths_add_up_and_empty_spans_are_bounded():
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 50):
        for mean in (0.1, 3.0):
            lengths = span_lengths(count, mean, rng)
            assert lengths.sum() == count
            assert len(lengths) <= count, "the source is longer than its text"


def test_every_place_is_taken_out_alike(rng_of):
    n, times = 60, np.zeros(60)
    for i in range(4000):
        source = mask_spans(np.arange(100, 100 + n), InfillingConfig(), MASK, rng_of(i))
        times[np.setdiff1d(np.arange(100, 100 + n), source) - 100] += 1
    rates = times / 4000
    assert abs(rates.mean() - 0.3) < 1e-6
    # No span begins before the text, so tokens near its two ends are removed less often.
    assert rates[6:-6].min() > 0.27
    assert rates[6:-6].max() < 0.36


@pytest.mark.parametrize("permute", [False, True])
def test_the_target_is_the_whole_text(permute, corpus, make_task, tokenizer, rng_of):
    config = InfillingConfig(permute_sentences=permute)
    examples = make_task("infilling", "encoder_decoder", length=64, target_length=64, infilling=config).examples(
        corpus, 0
    )
    times = [np.zeros(n, int) for n in corpus.lengths]
    for i in range(len(examples)):
        f = examples(i, rng_of(i))
        for s, (document, start, length) in enumerate(examples.rows.bounds(i), 1):
            at = (f["decoder_segment_ids"] == s) & (f["weights"] > 0)
            text = corpus.tokens(document, start, length).tolist()
            assert f["targets"][at].tolist() == [*text, tokenizer.eos_id]
            source = f["encoder_tokens"][f["encoder_segment_ids"] == s]
            assert source[-1] == tokenizer.eos_id
            kept = source[(source != tokenizer.mask_id)][:-1]
            assert not np.setdiff1d(kept, text).size
            times[document][start : start + length] += 1
    assert all((t == 1).all() for t in times)


def test_shuffled_sentences_stay_whole(make_store, make_task, tokenizer, rng_of):
    sentences = ("aaaa.", " bbbb.", " cccc.", " dddd.")
    config = InfillingConfig(permute_sentences=True, mask_rate=0.01)
    task = make_task("infilling", "encoder_decoder", length=32, target_length=32, infilling=config)
    examples = task.examples(make_store([sentences]), 0)
    orders = set()
    for epoch in range(200):
        f = examples(0, rng_of(0, epoch))
        tokens = f["encoder_tokens"][f["encoder_segment_ids"] > 0][:-1]
        assert f["targets"].tolist() == examples(0, rng_of(0))["targets"].tolist()
        letters = [tokenizer.decode([t])[:1] or "?" for t in tokens]
        order = [c for c, before in zip(letters, [" ", *letters], strict=False) if c in "abcd" and c != before]
        orders.add("".join(dict.fromkeys(order)))
        assert [c for c in "abcd" if letters.count(c) < 3] == [], "more than one token is gone"
    assert len(orders) == 24, "some orders of the sentences never occur"
