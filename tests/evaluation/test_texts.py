"""BLEU, chrF and ROUGE are those of their libraries, over all examples and in every draw of the bootstrap."""

import math

import numpy as np
import pytest

from lmjax.errors import DataError
from lmjax.evaluation.intervals import compare
from lmjax.evaluation.texts import bleu, chrf, exact_match, likelihood, rouge

sacrebleu = pytest.importorskip("sacrebleu")
rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")

RNG = np.random.default_rng(0)
WORDS = ["The", "cat", "sat", "on", "a", "mat,", "and", "A", "dog", "ran", "past", "the", "old", "house."]


def texts(count=60, seed=0):
    """References and predictions that share word sequences; one prediction is empty, and two are short."""
    rng = np.random.default_rng(seed)
    references = [" ".join(rng.choice(WORDS, size=rng.integers(5, 12))) for _ in range(count)]
    words = [[w if rng.random() < 0.8 else str(rng.choice(WORDS)) for w in text.split()] for text in references]
    return references, ["", "the", "old dog", *(" ".join(each) for each in words[3:])]


REFERENCES, PREDICTED = texts()
PICKED = [np.arange(60), *(RNG.integers(60, size=60) for _ in range(3)), np.zeros(60, int)]


def drawn(measurement, picked):
    counts = np.bincount(measurement.kinds[picked], minlength=measurement.kinds.max() + 1)
    return {name: float(x[0]) for name, x in measurement.of_counts(counts[None].astype(float)).items()}


METRICS = {
    "bleu": (bleu, {}, lambda: sacrebleu.BLEU()),
    "bleu_lowercase": (bleu, {"lowercase": True}, lambda: sacrebleu.BLEU(lowercase=True)),
    "chrf": (chrf, {}, lambda: sacrebleu.CHRF()),
    "chrf++": (chrf, {"word_order": 2}, lambda: sacrebleu.CHRF(word_order=2)),
}


@pytest.mark.parametrize("picked", PICKED)
@pytest.mark.parametrize("name", METRICS)
def test_corpus_metrics_are_sacrebleus(name, picked):
    measure, options, metric = METRICS[name]
    metric = metric()
    references, predicted = [REFERENCES[i] for i in picked], [PREDICTED[i] for i in picked]
    expected = metric.corpus_score(predicted, [references]).score
    found = measure(references, predicted, **options)
    assert found.values == {name: pytest.approx(expected, abs=1e-9)}
    assert drawn(measure(REFERENCES, PREDICTED, **options), picked) == {name: pytest.approx(expected, abs=1e-9)}
    measured = found.measured(20)[name]
    assert measured.signature == str(metric.get_signature())
    assert "version:" in measured.signature
    assert measured.low <= measured <= measured.high


def test_the_case_is_in_the_signature():
    assert "case:mixed" in bleu(REFERENCES, PREDICTED).measured(0)["bleu"].signature
    assert "case:lc" in bleu(REFERENCES, PREDICTED, lowercase=True).measured(0)["bleu_lowercase"].signature


def test_several_references():
    """Examples may have different numbers of them."""
    several = [[text, *([PREDICTED[i]] if i % 2 else [])] for i, text in enumerate(REFERENCES)]
    columns = [REFERENCES, [PREDICTED[i] if i % 2 else None for i in range(60)]]
    for measure, metric in ((bleu, sacrebleu.BLEU()), (chrf, sacrebleu.CHRF())):
        found = measure(several, PREDICTED)
        assert list(found.values.values()) == [pytest.approx(metric.corpus_score(PREDICTED, columns).score)]
        assert "nrefs:var" in next(iter(found.signatures.values()))
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    expected = np.mean([scorer.score_multi(*pair)["rougeL"].fmeasure for pair in zip(several, PREDICTED, strict=True)])
    assert rouge(several, PREDICTED).values["rougeL"] == pytest.approx(expected)
    assert exact_match(several, PREDICTED).values["exact_match"] >= 0.5


def test_a_comparison_is_sacrebleus():
    """Of BLEU, by the paired bootstrap. sacrebleu looks at the larger differences alone, so its p-value is a half."""
    from sacrebleu.significance import PairedTest

    other = [*texts(seed=4)[1][:8], *PREDICTED[8:]]
    found = compare(bleu(REFERENCES, other), bleu(REFERENCES, PREDICTED))["bleu"]
    test = PairedTest([("a", PREDICTED), ("b", other)], {"BLEU": sacrebleu.BLEU()}, [REFERENCES], "bs", 500)
    first, second = test()[1]["BLEU"]
    assert found.value == pytest.approx(second.score - first.score)
    assert 0.02 < found.p == pytest.approx(2 * second.p_value, abs=0.05)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_is_that_of_rouge_score(stemmer):
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemmer)
    references, predicted = ["the cats sat down", "a dog"], ["cat sat", ""]
    pairs = list(zip([*references, *REFERENCES], [*predicted, *PREDICTED], strict=True))
    scores = [scorer.score(*pair) for pair in pairs]
    found = rouge(*zip(*pairs, strict=True), stemmer=stemmer).measured(20)
    assert list(found) == ["rouge1", "rouge2", "rougeL"]
    for name, x in found.items():
        assert x == pytest.approx(np.mean([each[name].fmeasure for each in scores]))
        assert x.signature.startswith(f"stemmer:{'yes' if stemmer else 'no'}|rouge-score:")


def test_the_stemmer_makes_words_equal():
    assert rouge(["cats"], ["cat"]).values["rouge1"] == 0
    assert rouge(["cats"], ["cat"], stemmer=True).values["rouge1"] == 1


def test_exact_match_counts_case_and_not_the_space_around():
    assert exact_match(["a b", "c", "D"], [" a b\n", "x", "d"]).values == {"exact_match": pytest.approx(1 / 3)}


def test_likelihoods_are_of_sums():
    """The perplexity of all tokens, not the mean of perplexities."""
    found = likelihood([2.0, 30.0], [2, 10], [4, 60]).measured()
    assert found["nats_per_token"] == pytest.approx(32 / 12)
    assert found["perplexity"] == pytest.approx(math.exp(32 / 12))
    assert found["bits_per_byte"] == pytest.approx(32 / 64 / math.log(2))
    assert (found["nats_per_token"].low, found["nats_per_token"].high) == pytest.approx((1.0, 3.0))
    assert math.isfinite(likelihood([1e6], [1], [0]).values["perplexity"])


def test_what_cannot_be_measured_is_refused():
    for measure in (bleu, chrf, rouge, exact_match):
        with pytest.raises(DataError, match="0 examples"):
            measure([], [])
        with pytest.raises(DataError, match="2 and 1 examples"):
            measure(["a", "b"], ["a"])
        with pytest.raises(DataError, match="example 1 has no reference"):
            measure([["a"], []], ["a", "b"])
    assert bleu(["a b c"], [""]).values == {"bleu": 0.0}
