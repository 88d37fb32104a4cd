"""Span corruption: no token is lost, lengths are known before spans are drawn, rates are those of the paper."""

import numpy as np
import pytest

from lmjax.objectives.span_corruption import SpanCorruptionConfig, corrupt, noise_counts, random_partition
from lmjax.objectives.task import TaskConfig

CONFIGS = [
    SpanCorruptionConfig(),
    SpanCorruptionConfig(noise_density=0.5, mean_span_length=1),
    SpanCorruptionConfig(noise_density=0.5, mean_span_length=32),
    SpanCorruptionConfig(noise_density=0.97, mean_span_length=1.5),
    SpanCorruptionConfig(noise_density=0.01),
]
SENTINELS = np.arange(1000, 1100)
KNOWN = frozenset(SENTINELS.tolist())
EOS = 3


def spans_of(side, known=KNOWN):
    """Returns the tokens after each sentinel, by sentinel; those before the first one have the key None."""
    found, key = {None: []}, None
    for token in np.asarray(side).tolist():
        if token in known:
            assert token not in found, "a sentinel is used twice"
            key, found[token] = token, []
        else:
            found[key].append(token)
    return found


def restored(source, target):
    """Returns the text restored from source and target."""
    assert source[-1] == target[-1] == EOS
    cut, kept = spans_of(target[:-1]), spans_of(source[:-1])
    assert not cut.pop(None), "the target begins with text"
    text = kept.pop(None)
    assert list(cut) == list(kept) == SENTINELS[: len(cut)].tolist(), "sentinels out of order, or not equal"
    for sentinel, after in kept.items():
        text += cut[sentinel] + after
    return text


def test_examples_by_hand(rng_of):
    """Of two tokens either is cut out, and in a short text the span may be anywhere, not only at its end."""
    found = set()
    for i in range(50):
        source, target = corrupt(np.array([8, 9]), SENTINELS, EOS, SpanCorruptionConfig(), rng_of(i))
        found.add((tuple(source.tolist()), tuple(target.tolist())))
    assert found == {((8, 1000, EOS), (1000, 9, EOS)), ((1000, 9, EOS), (1000, 8, EOS))}
    starts = [corrupt(np.arange(20), SENTINELS, EOS, SpanCorruptionConfig(), rng_of(i))[1][1] for i in range(500)]
    assert set(starts) == set(range(18)), "the single span of three tokens has not all positions"


def test_single_token_is_cut_out():
    source, target = corrupt(np.array([8]), SENTINELS, EOS, SpanCorruptionConfig(), np.random.default_rng(0))
    assert source.tolist() == [1000, EOS]
    assert target.tolist() == [1000, 8, EOS]


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
def test_features_by_hand(architecture, make_store, make_task, ids):
    task = make_task("span_corruption", architecture, length=8, target_length=8)
    # One of the two tokens is cut out; with this random generator, the first.
    f = task.examples(make_store([("ab",)]), 0)(0, np.random.default_rng(1))
    f = {name: array.tolist() for name, array in f.items()}
    if architecture == "encoder_decoder":
        assert f == {
            "encoder_tokens": [*ids("S0", "b", "EOS"), *ids("PAD") * 5],
            "encoder_positions": [0, 1, 2, 0, 0, 0, 0, 0],
            "encoder_segment_ids": [1, 1, 1, 0, 0, 0, 0, 0],
            "decoder_tokens": [*ids("PAD", "S0", "a"), *ids("PAD") * 5],
            "decoder_positions": [0, 1, 2, 0, 0, 0, 0, 0],
            "decoder_segment_ids": [1, 1, 1, 0, 0, 0, 0, 0],
            "targets": [*ids("S0", "a", "EOS"), *ids("PAD") * 5],
            "weights": [1, 1, 1, 0, 0, 0, 0, 0],
        }
    else:
        assert f == {
            "tokens": ids("BOS", "S0", "b", "EOS", "S0", "a", "PAD", "PAD"),
            "positions": [0, 1, 2, 3, 4, 5, 0, 0],
            "segment_ids": [1, 1, 1, 1, 1, 1, 0, 0],
            "targets": ids("S0", "b", "EOS", "S0", "a", "EOS", "PAD", "PAD"),
            "weights": [0, 0, 0, 1, 1, 1, 0, 0],
        }


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_source_and_target_restore_the_text(config):
    rng = np.random.default_rng(0)
    for n in [1, 2, 3, 4, 5, 7, 10, 33, 100, 150]:
        text = rng.integers(10, 900, n)
        assert restored(*corrupt(text, SENTINELS, EOS, config, rng)) == text.tolist()


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_cost_is_the_real_length(config, architecture, make_task, tokenizer):
    """A cost below the real length would overflow a row; one above it would waste positions."""
    length, target_length = 4000, 1000
    task = make_task(
        "span_corruption", architecture, length=length, target_length=target_length, span_corruption=config
    )
    lengths = np.arange(1, 3001)
    costs = task.objectives[0].cost(lengths)
    assert (np.diff(costs) >= 0).all(), "a shorter piece costs more, so cutting to the longest piece is not enough"
    rng = np.random.default_rng(0)
    for n in [*range(1, 40), *rng.integers(40, 3001, 60)]:
        spans = noise_counts(np.array([n]), config)[1][0]
        if spans > len(tokenizer.sentinel_ids):
            assert costs[n - 1] > length, "a piece with more spans than sentinels was accepted"
            continue
        source, target = corrupt(np.arange(n), SENTINELS, EOS, config, rng)
        both = len(source) + len(target)
        fuller = max(len(source), -(-len(target) * length // target_length))
        assert costs[n - 1] == (both if architecture == "decoder" else fuller)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_counts_agree_with_their_definition(config):
    lengths = np.arange(1, 3001)
    noise, spans = noise_counts(lengths, config)
    assert (noise >= 1).all()
    assert (noise[1:] < lengths[1:]).all(), "all tokens of a text were cut out"
    assert ((spans >= 1) & (spans <= noise)).all(), "an empty span"
    assert (spans <= np.maximum(lengths - noise, 1)).all(), "two spans are adjacent"
    np.testing.assert_array_less(np.abs(noise - lengths * config.noise_density)[lengths > 100], 0.51)


def test_counts_of_a_row_of_t5():
    """T5 is pretrained on rows of 512: 568 tokens become 512 and 114 with EOS (numbers of the T5 release)."""
    noise, spans = noise_counts(np.array([568]), SpanCorruptionConfig())
    assert 568 - noise[0] + spans[0] + 1 == 512
    assert noise[0] + spans[0] + 1 == 114


def test_rates_over_many_examples(rng_of):
    """15 % of the tokens are cut out, in spans of 3 on average, equally often at all positions inside the text."""
    config, n, examples = SpanCorruptionConfig(), 100, 10_000
    cut, sizes = np.zeros(n), []
    for i in range(examples):
        _, target = corrupt(np.arange(100, 100 + n), SENTINELS, EOS, config, rng_of(i))
        spans = spans_of(target[:-1])
        cut[np.array([t for s in spans.values() for t in s]) - 100] += 1
        sizes += [len(s) for key, s in spans.items() if key]
    assert cut.sum() == 0.15 * n * examples
    assert np.mean(sizes) == 3.0
    assert len(set(sizes)) == 11, "all lengths from 1 to 15 - 4 occur"
    # No span begins before the text, so only tokens near its two ends are cut out less often.
    rates = cut / examples
    assert rates[10:90].min() > 0.14
    assert rates[10:90].max() < 0.18
    assert 0.04 < rates[[0, -1]].min() <= rates[[0, -1]].max() < 0.08


def test_partitions_are_equally_likely(rng_of, within):
    found = [tuple(random_partition(5, 3, rng_of(i)).tolist()) for i in range(6000)]
    assert len(set(found)) == 6
    assert all(within(found.count(p), len(found), 1 / 6) for p in set(found))


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
@pytest.mark.parametrize("config", CONFIGS[:2], ids=str)
def test_every_document_is_read_whole(architecture, config, corpus, make_task, tokenizer, rng_of):
    """The restored pieces of one epoch have each token of each document once."""
    task = make_task(
        "span_corruption", architecture, length=64, target_length=32 if config == CONFIGS[0] else 64,
        span_corruption=config,
    )  # fmt: skip
    examples = task.examples(corpus, 0)
    times = [np.zeros(n, int) for n in corpus.lengths]
    first, source_name = (0, "encoder_") if architecture == "encoder_decoder" else (1, "")
    known = frozenset(tokenizer.sentinel_ids.tolist())
    for i in range(len(examples)):
        f = examples(i, rng_of(i))
        target_segments = f["decoder_segment_ids" if first == 0 else "segment_ids"]
        for s, (document, start, length) in enumerate(examples.rows.bounds(i), 1):
            at = (target_segments == s) & (f["weights"] > 0)
            target = f["targets"][at].tolist()
            source = f[f"{source_name}tokens"][f[f"{source_name}segment_ids"] == s].tolist()
            source = source[first : len(source) if first == 0 else len(source) - len(target) + 1]
            assert source[-1] == target[-1] == tokenizer.eos_id
            cut, text = spans_of(target[:-1], known), []
            for key, kept in spans_of(source[:-1], known).items():
                text += cut[key] + kept
            assert text == corpus.tokens(document, start, length).tolist()
            times[document][start : start + length] += 1
    assert all((t == 1).all() for t in times)


def t5_lengths(inputs_length: int, density: float, mean: float) -> tuple[int, int]:
    """`compute_input_and_target_lengths` of T5's release (t5/data/preprocessors.py): (tokens, targets) of a text."""

    def corrupted(tokens: int) -> tuple[int, int]:
        noise = round(tokens * density)
        spans = round(noise / mean)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = inputs_length - 1
    while corrupted(tokens + 1)[0] <= inputs_length:
        tokens += 1
    return tokens, corrupted(tokens)[1]


@pytest.mark.parametrize("length", [64, 128, 256, 500, 512, 1024, 4096])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.15, 8.0), (0.3, 3.0), (0.5, 3.0), (0.5, 64.0)])
def test_the_decoders_row_is_as_long_as_t5_has_it(length, density, mean):
    config = SpanCorruptionConfig(noise_density=density, mean_span_length=mean)
    found = TaskConfig(objective=("span_corruption",), length=length, span_corruption=config).default_target_length()
    assert found == t5_lengths(length, density, mean)[1]
    assert TaskConfig(objective=("span_corruption",), length=length, target_length=48).default_target_length() == 48


def test_t5s_own_row_of_512_has_114_targets():
    assert TaskConfig(objective=("span_corruption",), length=512).default_target_length() == 114


@pytest.mark.parametrize("length", [64, 200, 512])
def test_rows_of_any_length_are_well_filled_on_both_sides(length, make_store, make_task, rng_of):
    """With long texts; if the decoder's row had 48 tokens, the encoder's row of 512 would be only 42 % full."""
    examples = make_task("span_corruption", "encoder_decoder", length=length).examples(
        make_store([("abcdef" * 999,)]), 0
    )
    f = examples(0, rng_of(0))
    for side in ("encoder", "decoder"):
        assert (f[f"{side}_segment_ids"] > 0).mean() > 0.95


def test_rows_are_well_filled(corpus, make_task, rng_of):
    examples = make_task("span_corruption", "encoder_decoder", length=128, target_length=32).examples(corpus, 0)
    filled = np.mean([(examples(i, rng_of(i))["encoder_segment_ids"] > 0).mean() for i in range(len(examples))])
    assert filled > 0.85


def test_long_text_never_runs_out_of_sentinels(make_store, make_task, tokenizer, rng_of):
    config = SpanCorruptionConfig(noise_density=0.5, mean_span_length=1)
    task = make_task("span_corruption", "encoder_decoder", length=2048, target_length=2048, span_corruption=config)
    examples = task.examples(make_store([("abcdefghij" * 300,)]), 0)
    for i in range(len(examples)):
        f = examples(i, rng_of(i))
        for s in range(1, f["decoder_segment_ids"].max() + 1):
            used = np.isin(f["targets"][f["decoder_segment_ids"] == s], tokenizer.sentinel_ids).sum()
            assert 0 < used <= 100
