"""Denoisers: UL2's seven in equal shares, each with its mode token, its rate and its spans; no token is lost."""

import numpy as np
import pydantic
import pytest

from lmjax.objectives.denoise import DenoiseConfig

LENGTH, TARGET_LENGTH = 64, 48


@pytest.fixture(scope="module", params=["encoder_decoder", "decoder"])
def task(request, make_task):
    return make_task("denoise", request.param, length=LENGTH, target_length=TARGET_LENGTH)


def sides(task, f, segment):
    """Returns the source and the target of a segment, each with its EOS, and the bidirectional tokens."""
    if task.objectives[0].architecture == "encoder_decoder":
        target = f["targets"][(f["decoder_segment_ids"] == segment) & (f["weights"] > 0)]
        return f["encoder_tokens"][f["encoder_segment_ids"] == segment].tolist(), target.tolist()
    at = f["segment_ids"] == segment
    target = f["targets"][at & (f["weights"] > 0)].tolist()
    whole = f["tokens"][at].tolist()
    source = whole[1 : len(whole) - len(target) + 1]
    assert f["prefix"][at].tolist() == [1] * (len(source) + 1) + [0] * (len(target) - 1)
    return source, target


def restored(source, target, sentinels, eos):
    """Returns the text restored from source and target, and the number of cut-out tokens and spans."""
    assert source[-1] == target[-1] == eos
    source, target = source[1:-1], target[:-1]
    if not set(source) & sentinels:
        return source + target, len(target), 1
    cut = {}
    for token in target:
        if token in sentinels:
            span = cut[token] = []
        else:
            span.append(token)
    text = [t for token in source for t in (cut[token] if token in sentinels else [token])]
    return text, sum(map(len, cut.values())), len(cut)


def test_nothing_is_lost_and_every_denoiser_keeps_its_rate(task, corpus, tokenizer, rng_of):
    examples = task.examples(corpus, 0)
    config, modes = DenoiseConfig(), dict(zip("RSX", tokenizer.sentinel_ids[-3:].tolist(), strict=True))
    sentinels = set(tokenizer.sentinel_ids[:-3].tolist())
    assert len(examples.sources) == len(config.modes) == 7
    assert len({s.rate for s in examples.sources}) == 1
    for number, source_rows in enumerate(examples.sources):
        times = [np.zeros(n, int) for n in corpus.lengths]
        cut = spans = total = 0
        for i in range(len(source_rows.rows)):
            f = examples(int(examples.mixture.offsets[number]) + i, rng_of(i))
            for s, (document, start, length) in enumerate(source_rows.rows.bounds(i), 1):
                source, target = sides(task, f, s)
                assert source[0] == modes[config.modes[number]]
                text, noise, count = restored(source, target, sentinels, tokenizer.eos_id)
                assert text == corpus.tokens(document, start, length).tolist()
                times[document][start : start + length] += 1
                cut, spans, total = cut + noise, spans + count, total + length
        assert all((t == 1).all() for t in times), "a token is lost or read twice"
        assert abs(cut / total - config.noise_densities[number]) < 0.03
        mean = config.mean_span_lengths[number]
        if mean in (3, 8):
            # The texts of a row are short, so few have spans as long as the mean length.
            assert 0.6 * mean < cut / spans < 1.4 * mean


def test_the_sequential_denoiser_predicts_the_end(make_store, make_task, ids, tokenizer):
    config = DenoiseConfig(modes=("S",), mean_span_lengths=(0,), noise_densities=(0.25,))
    task = make_task("denoise", "encoder_decoder", length=16, target_length=16, denoise=config)
    f = task.examples(make_store([("abcdefgh",)]), 0)(0, np.random.default_rng(0))
    assert f["encoder_tokens"][:8].tolist() == [tokenizer.sentinel_ids[-2], *ids("abcdef", "EOS")]
    assert f["targets"][:3].tolist() == ids("gh", "EOS")


def test_costs_are_the_real_lengths(task):
    """A cost below the real length would overflow a row; one above it would waste positions."""
    objective = task.objectives[0]
    rng = np.random.default_rng(0)
    for denoiser in objective.denoisers:
        costs = objective.cost(np.arange(1, 200), denoiser)
        assert (np.diff(costs) >= 0).all()
        for n in range(1, 100):
            source, target = denoiser.apply(np.arange(1000, 1000 + n), rng)
            both = len(source) + len(target)
            fuller = max(len(source), -(-len(target) * LENGTH // TARGET_LENGTH))
            assert costs[n - 1] == (both if objective.architecture == "decoder" else fuller)


def test_mode_tokens_are_no_spans_sentinel(make_task, tokenizer):
    config = DenoiseConfig(modes=("X",), mean_span_lengths=(1,), noise_densities=(0.5,))
    task = make_task("denoise", "decoder", length=500, denoise=config)
    (denoiser,) = task.objectives[0].denoisers
    assert denoiser.mode == tokenizer.sentinel_ids[-1]
    assert len(denoiser.sentinels) == 97
    lengths = np.arange(1, 300)
    _, spans = denoiser.counts(lengths)
    assert (task.objectives[0].cost(lengths, denoiser)[spans > 97] > 500).all()


def test_fields_that_do_not_fit_are_refused():
    with pytest.raises(pydantic.ValidationError, match="have 1, 7 and 7 entries; give one for each"):
        DenoiseConfig(modes=("R",))
    with pytest.raises(pydantic.ValidationError, match="a span is 0 or at least 1 token long"):
        DenoiseConfig(modes=("R",), mean_span_lengths=(0.5,), noise_densities=(0.1,))
