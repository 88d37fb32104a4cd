"""Statistics over seeds and documents: they equal those of scipy and statsmodels, and hold the truth as they say."""

import math
import pathlib
import runpy

import numpy as np
import pytest
from scipy import stats

from lmjax.errors import DataError
from lmjax.evaluation import seeds
from lmjax.evaluation.documents import DocumentLosses
from lmjax.evaluation.seeds import (
    compare_runs,
    detectable,
    holm,
    mean_interval,
    planned_detectable,
    pooled_deviation,
    signal_to_noise,
)

COVERAGE = pathlib.Path(__file__).parents[2] / "experiments/bench/interval_coverage.py"


def runs(means, documents=50):
    """Runs without any difference between documents."""
    return np.repeat(np.array(means)[:, None], documents, axis=1)


def test_the_interval_of_a_mean_is_students():
    values = [1.0, 2.0, 4.5]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert mean_interval(values) == pytest.approx((np.mean(values), low, high, 3))
    assert math.isnan(mean_interval([1.0]).low)


def test_without_noise_of_documents_a_comparison_is_welchs():
    first, second = [1.0, 1.3, 1.1], [1.5, 1.7, 1.9, 2.4]
    found = compare_runs(runs(first), runs(second))
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert found.value == pytest.approx(np.mean(first) - np.mean(second))
    assert found.freedom == pytest.approx(expected.df)
    assert found.p == pytest.approx(expected.pvalue, rel=0.05)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=0.03)
    pooled = math.sqrt((2 * np.var(first, ddof=1) + 3 * np.var(second, ddof=1)) / 5)
    assert found.effect == pytest.approx(found.value / pooled * (1 - 3 / (4 * expected.df - 1)))


def test_single_runs_are_compared_on_the_same_documents():
    """As by the paired t-test: noise that both runs share cancels, and the seed is not in the interval."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 5, 200)
    first, second = shared + rng.normal(0, 0.1, 200), shared + rng.normal(0.02, 0.1, 200)
    found = compare_runs(first[None], second[None])
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=0.06)
    assert found.p == pytest.approx(expected.pvalue, rel=0.1)
    assert math.isnan(found.effect)


def test_a_single_run_has_the_noise_of_the_others_seeds():
    found = compare_runs(runs([1.0]), runs([1.5, 1.7, 1.9]))
    error = stats.tstd([1.5, 1.7, 1.9]) * math.sqrt(1 + 1 / 3)
    assert found.freedom == pytest.approx(2)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 2) * error, rel=0.03)


def test_equal_runs_do_not_differ():
    same = np.random.default_rng(0).normal(size=(3, 40))
    found = compare_runs(same, same)
    assert (found.value, found.p) == (0.0, 1.0)
    one = compare_runs(same[:1], same[:1])
    assert (one.low, one.high, one.p) == (0.0, 0.0, 1.0)


def test_comparisons_of_many_sweeps_are_those_of_each():
    first, second = np.random.default_rng(0).normal(size=(2, 5, 3, 60))
    together = compare_runs(first, second, 500)
    for i in range(5):
        assert [x[i] for x in together] == pytest.approx([float(x) for x in compare_runs(first[i], second[i], 500)])


def test_many_documents_have_a_normal_mean(monkeypatch):
    first, second = np.random.default_rng(0).normal(size=(2, 2, 300))
    resampled = compare_runs(first, second)
    monkeypatch.setattr(seeds, "_RESAMPLED", 100)
    assert compare_runs(first, second).high == pytest.approx(float(resampled.high), rel=0.03)


def test_holm_is_that_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = [0.04, 0.001, 0.03, 0.5, 0.02, 0.02]
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])
    assert holm([]) == []


def test_a_detectable_difference_is_that_of_statsmodels():
    power = pytest.importorskip("statsmodels.stats.power")
    expected = power.TTestIndPower().solve_power(nobs1=3, alpha=0.05 / 6, power=0.8)
    assert detectable(math.sqrt(2 / 3), 4, 6) == pytest.approx(expected, rel=1e-3)
    many = power.TTestIndPower().solve_power(nobs1=40, alpha=0.05, power=0.8)
    assert planned_detectable(40) == pytest.approx(many, rel=5e-3)
    assert planned_detectable(3, comparisons=6) > expected, "Welch's test finds less than that of equal variances"


def test_a_planned_difference_is_found_as_often_as_promised():
    rng, documents = np.random.default_rng(0), 0.3
    true = planned_detectable(3, seed_deviation=0.5, document_error=documents)
    first, second = 0.5 * rng.standard_normal((2, 2000, 3))
    value = true + first.mean(1) - second.mean(1) + documents * rng.standard_normal(2000)
    each = [x.var(1, ddof=1) / 3 for x in (first, second)]
    total = each[0] + each[1] + documents**2
    freedom = total**2 / ((each[0] ** 2 + each[1] ** 2) / 2)
    assert (2 * stats.t.sf(np.abs(value) / np.sqrt(total), freedom) < 0.05).mean() == pytest.approx(0.8, abs=0.03)


def test_what_a_seed_does_to_single_documents_counts_once():
    """Its variance is in that of seeds and in that of documents; without the correction it would be twice as large."""
    first, second = np.random.default_rng(0).normal(size=(2, 300, 3, 40))
    assert (compare_runs(first, second, 100).error ** 2).mean() == pytest.approx(2 / 3 / 40, rel=0.2)


def test_deviations_are_pooled_over_groups():
    groups = [[1.0, 2.0, 3.0], [10.0, 14.0], [5.0]]
    found = pooled_deviation(groups)
    assert (found.value, found.freedom) == (pytest.approx(math.sqrt((2 + 8) / 3)), 3)
    low, high = (math.sqrt(10 / stats.chi2.ppf(q, 3)) for q in (0.975, 0.025))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert pooled_deviation([[1.0], [2.0]]) is None
    assert signal_to_noise({"a": groups[0], "b": groups[1]}) == pytest.approx(10 / math.sqrt(10 / 3))
    assert math.isnan(signal_to_noise({"a": [1.0], "b": [2.0]}))


def losses(**changes):
    rng = np.random.default_rng(0)
    values = {
        "names": ("mlm", "nsp"),
        "loss_weights": np.array([1.0, 0.5]),
        "nats": rng.gamma(2, 1, (2, 30)),
        "weights": rng.integers(1, 9, (2, 30)).astype(float),
        "correct": rng.integers(0, 2, (2, 30)).astype(float),
        "num_bytes": np.stack([rng.integers(5, 50, 30), np.zeros(30)]).astype(float),
        "fingerprint": "",
        "tokenizer": "",
        "step": 1,
    }
    return DocumentLosses(**(values | changes))


def test_shares_of_documents_have_the_measure_as_mean_and_its_variance():
    found = losses()
    assert found.shares().mean() == pytest.approx(found.loss)
    bits = found.nats[0].sum() / math.log(2) / found.num_bytes[0].sum()
    assert found.shares("bits_per_byte").mean() == pytest.approx(bits)
    assert found.shares("accuracy").mean() == pytest.approx(found.correct[0].sum() / found.weights[0].sum())
    draws = np.random.default_rng(1).integers(30, size=(4000, 30))
    drawn = found.nats[0][draws].sum(1) / math.log(2) / found.num_bytes[0][draws].sum(1)
    assert found.shares("bits_per_byte").std() / math.sqrt(30) == pytest.approx(drawn.std(), rel=0.1)
    half = np.arange(30) < 15
    assert found.shares("accuracy", half).mean() == pytest.approx(
        found.correct[0][:15].sum() / found.weights[0][:15].sum()
    )
    with pytest.raises(DataError, match="has no bits_per_byte; compare the loss"):
        losses(num_bytes=np.zeros((2, 30))).shares("bits_per_byte")


@pytest.fixture(scope="module")
def coverage():
    return runpy.run_path(str(COVERAGE))


@pytest.mark.parametrize("kind", ["skewed documents"])
def test_intervals_hold_the_truth_as_often_as_they_say(coverage, kind):
    """A small version of the command in experiments/bench, with room for the chance of so few sweeps."""
    found = coverage["measure"](200, coverage["KINDS"][kind])
    assert 0.92 < found["intervals"] < 0.98
    assert 0.92 < found["means"] < 0.98
    assert max(found["false"], found["permuted"]) < 0.08
    assert found["power"] > 0.7


def test_a_bootstrap_of_three_seeds_would_fail_that_test(coverage):
    def plain(first, second, draws):
        rng = np.random.default_rng(0)
        value = first.mean((-2, -1)) - second.mean((-2, -1))
        drawn = []
        for _ in range(200):
            picked, documents = rng.integers(3, size=(2, 3)), rng.integers(first.shape[-1], size=first.shape[-1])
            a, b = (x[..., documents].mean(-1)[..., i] for x, i in zip((first, second), picked, strict=True))
            drawn.append(a.mean(-1) - b.mean(-1))
        low, high = np.percentile(np.stack(drawn), (2.5, 97.5), axis=0)
        p = np.full(value.shape, 1.0)
        return seeds.Comparison(value, low, high, p, value, value, value)

    assert coverage["measure"](100, coverage["KINDS"]["mostly seeds"], compare=plain)["intervals"] < 0.9
