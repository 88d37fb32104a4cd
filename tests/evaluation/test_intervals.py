"""Intervals of the bootstrap cover what they should, and paired comparisons see what unpaired ones would miss."""

import copy
import json
import pickle

import numpy as np
import pytest
from scipy import stats

from lmjax.errors import DataError, FlagError
from lmjax.evaluation import intervals
from lmjax.evaluation.classes import calibration, single_label
from lmjax.evaluation.intervals import Measured, compare, joined, mcnemar, of_means, of_sums, ratio, required
from lmjax.evaluation.regression import regression

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=300)


def ends(measured, name="x"):
    return measured[name].low, measured[name].high


def test_an_interval_is_scipys():
    """The percentile bootstrap of a mean, whose draws are others here: within the error of 1,000 draws."""
    found = of_means({"x": NORMAL}).measured(4000)["x"]
    expected = stats.bootstrap((NORMAL,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert found == pytest.approx(NORMAL.mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)
    two = of_means({"x": NORMAL > 0}).measured(4000)["x"]
    expected = stats.bootstrap((NORMAL > 0,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert (two.low, two.high) == pytest.approx(tuple(expected), abs=0.01)


@pytest.mark.parametrize("draw", [lambda rng: rng.random(60) < 0.7, lambda rng: 0.7 + rng.normal(size=60)])
def test_an_interval_covers_the_true_value_in_95_of_100_data_sets(draw):
    """With few kinds of examples (counts are drawn), and with as many as examples (examples are drawn)."""
    rng = np.random.default_rng(1)
    found = [ends(of_means({"x": draw(rng)}).measured(200)) for _ in range(300)]
    assert 0.91 <= np.mean([low <= 0.7 <= high for low, high in found]) <= 0.98


def test_draws_have_the_examples_counts():
    for counts in (np.array([3, 1, 996]), np.ones(50, int), np.array([2, 1, 1, 1])):
        drawn = np.concatenate(list(intervals._draws(counts, 3000)))
        assert drawn.shape == (3000, len(counts))
        assert (drawn.sum(axis=1) == counts.sum()).all()
        share = counts / counts.sum()
        error = np.sqrt(counts.sum() * share * (1 - share) / 3000)
        assert (np.abs(drawn.mean(axis=0) - counts) < 5 * error).all()
        # The variance is that of a multinomial distribution.
        assert drawn.var(axis=0) == pytest.approx(counts.sum() * share * (1 - share), rel=0.2)


def test_intervals_depend_neither_on_the_order_nor_on_the_chunks(monkeypatch):
    order = RNG.permutation(len(NORMAL))
    one = of_means({"x": NORMAL}).measured()
    assert ends(of_means({"x": NORMAL[order]}).measured()) == ends(one)
    both = [compare(of_means({"x": a}), of_means({"x": b})) for a, b in
            ((NORMAL, NORMAL**2), (NORMAL[order], NORMAL[order] ** 2))]  # fmt: skip
    assert both[0]["x"] == pytest.approx(both[1]["x"])
    monkeypatch.setattr(intervals, "_CHUNK", 7 * len(NORMAL))
    assert ends(of_means({"x": NORMAL}).measured()) == ends(one)


def test_a_measured_number_is_a_number():
    found = Measured(0.5, 0.25, 0.75, "by hand")
    assert found == 0.5
    assert json.dumps({"x": found}) == '{"x": 0.5}'
    assert f"{found:.2f} {found + 1}" == "0.50 1.5"
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (other, other.low, other.high, other.signature) == (0.5, 0.25, 0.75, "by hand")
    assert of_means({"x": NORMAL}).measured(0)["x"].low is None


def test_a_single_example_has_no_interval():
    """Its draws are all the same, and would look like certainty."""
    found = of_means({"x": [0.5]}).measured()["x"]
    assert (found, found.low, found.high) == (0.5, None, None)


def test_a_paired_comparison_sees_a_small_difference():
    """The second system is a little worse on each example: far less than the examples differ among themselves."""
    first = of_means({"x": NORMAL, "only here": NORMAL})
    found = compare(first, of_means({"x": NORMAL - 0.05 - 0.01 * RNG.normal(size=300)}))
    assert set(found) == {"x"}
    assert 0.04 < found["x"].low < found["x"].value < found["x"].high < 0.06
    assert found["x"].p == pytest.approx(1 / 1001)
    same = compare(first, first)["x"]
    assert same == (0.0, 0.0, 0.0, 1.0)
    turned = compare(of_means({"x": NORMAL - 0.05}), first)["x"]
    assert turned.low == pytest.approx(-0.05)


def test_p_values_of_equal_systems_are_uniform():
    """Two systems that are right equally often differ at the level of 10 % in a tenth of the data sets."""
    rng = np.random.default_rng(2)
    found = [compare(*(of_means({"x": rng.normal(size=50)}) for _ in range(2)), 200)["x"].p for _ in range(200)]
    assert 0.05 < np.mean(np.array(found) < 0.1) < 0.16
    assert 0.4 < np.mean(found) < 0.6


def test_p_values_are_those_of_a_paired_test():
    other = NORMAL + RNG.normal(0.02, 0.3, size=300)
    found = compare(of_means({"x": NORMAL}), of_means({"x": other}), 4000)["x"]
    expected = stats.ttest_rel(NORMAL, other)
    assert found.p == pytest.approx(expected.pvalue, abs=0.03)
    assert found[1:3] == pytest.approx(tuple(expected.confidence_interval()), abs=0.005)


def test_joined_measurements_are_the_parts():
    """Also of kinds that differ: classes and probabilities."""
    gold, labels = RNG.integers(3, size=200), ("a", "b", "c")
    scores = RNG.dirichlet(np.ones(3), size=200)
    parts = single_label(gold, scores.argmax(axis=1), labels), calibration(gold, scores)
    together = joined(*parts)
    assert together.values == {**parts[0].values, **parts[1].values}
    counts = np.bincount(together.kinds)[None].astype(float)
    for name, x in together.of_counts(counts).items():
        assert x[0] == pytest.approx(together.values[name]), name
    # Twice the examples of class 0: as if they were there twice.
    twice = np.concatenate([np.arange(200), np.flatnonzero(gold == 0)])
    weights = np.bincount(together.kinds[twice], minlength=counts.shape[1])[None].astype(float)
    expected = joined(single_label(gold[twice], scores[twice].argmax(axis=1), labels),
                      calibration(gold[twice], scores[twice])).values  # fmt: skip
    assert {name: x[0] for name, x in together.of_counts(weights).items()} == pytest.approx(dict(expected))


def test_mcnemar_is_the_sign_test_of_discordant_examples():
    first = [True] * 10 + [False] * 2 + [True] * 5 + [False] * 3
    second = [False] * 10 + [True] * 2 + [True] * 5 + [False] * 3
    found = mcnemar(first, second)
    # Two-sided: twice the chance of at most 2 of 12, as binomial coefficients.
    assert found == (10, 2, pytest.approx(2 * (1 + 12 + 66) / 2**12))
    assert mcnemar([True, False], [True, False]) == (0, 0, 1.0)


def test_sums_over_examples():
    """A ratio of sums is not a mean of ratios."""
    rows = np.array([[1.0, 2.0], [0.0, 0.0], [5.0, 6.0]])
    assert of_sums(rows, lambda sums: {"x": ratio(sums[:, 0], sums[:, 1])}).values == {"x": 0.75}
    assert ratio(np.array([1.0, 0.0]), np.array([0.0, 0.0])).tolist() == [0.0, 0.0]


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(DataError, match=r"0 examples, whose metrics are not defined"):
        of_means({"x": []})
    with pytest.raises(DataError, match=r"3 and 2 examples; give one prediction for each"):
        mcnemar([True] * 3, [True] * 2)
    with pytest.raises(DataError, match=r"300 and 299 examples"):
        compare(of_means({"x": NORMAL}), of_means({"x": NORMAL[1:]}))
    with pytest.raises(DataError, match=r"300 and 299 examples"):
        joined(of_means({"x": NORMAL}), of_means({"y": NORMAL[1:]}))


def test_a_missing_package_is_named():
    with pytest.raises(FlagError, match=r"nosuchpackage is not installed: pip install \"lmjax\[evaluate\]\""):
        required("nosuchpackage.metrics")


def test_intervals_of_correlations_are_scipys():
    x = RNG.normal(size=80)
    y = np.round(x + RNG.normal(size=80), 1)
    found = regression(x, y).measured(2000)
    for name, of in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        expected = stats.bootstrap((x, y), lambda a, b, of=of: of(a, b).statistic, paired=True, vectorized=False,
                                   method="percentile", n_resamples=500, rng=0).confidence_interval  # fmt: skip
        assert ends(found, name) == pytest.approx(tuple(expected), abs=0.03)
