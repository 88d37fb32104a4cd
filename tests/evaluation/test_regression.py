"""Metrics of numbers are scikit-learn's and SciPy's, over all examples and in every draw of the bootstrap."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from lmjax.errors import DataError
from lmjax.evaluation.regression import regression

RNG = np.random.default_rng(0)
GOLD = np.round(RNG.normal(3, 1, size=100), 1)  # with ties
PREDICTED = np.round(GOLD + RNG.normal(size=100), 1)


def drawn(measurement, picked):
    counts = np.bincount(measurement.kinds[picked], minlength=measurement.kinds.max() + 1)
    return {name: float(x[0]) for name, x in measurement.of_counts(counts[None].astype(float)).items()}


def expected(gold, predicted):
    return {
        "mse": sk.mean_squared_error(gold, predicted),
        "mae": sk.mean_absolute_error(gold, predicted),
        "pearson": stats.pearsonr(gold, predicted).statistic,
        "spearman": stats.spearmanr(gold, predicted).statistic,
    }


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_metrics_are_the_libraries(offset):
    """Also of numbers that are large beside their differences."""
    gold, predicted = GOLD + offset, PREDICTED + offset
    found = regression(gold, predicted)
    for picked in (np.arange(100), *(RNG.integers(100, size=100) for _ in range(5))):
        wanted = expected(gold[picked], predicted[picked])
        assert regression(gold[picked], predicted[picked]).values == pytest.approx(wanted)
        assert drawn(found, picked) == pytest.approx(wanted)


def test_several_targets_are_averaged():
    gold, predicted = (np.stack([each, each[::-1] ** 2], axis=1) for each in (GOLD, PREDICTED))
    found = regression(gold, predicted, ("width", "depth"))
    for name, column in (("width", 0), ("depth", 1)):
        for metric, x in expected(gold[:, column], predicted[:, column]).items():
            assert found.values[f"{metric} {name}"] == pytest.approx(x)
    assert found.values["pearson"] == pytest.approx((found.values["pearson width"] + found.values["pearson depth"]) / 2)
    picked = RNG.integers(100, size=100)
    assert drawn(found, picked) == pytest.approx(
        dict(regression(gold[picked], predicted[picked], ("width", "depth")).values)
    )


def test_the_correlation_with_a_constant_is_0():
    found = regression([1.0, 2.0, 3.0], [0.1, 0.1, 0.1]).measured()
    assert (found["pearson"], found["spearman"], found["pearson"].high, found["spearman"].high) == (0, 0, 0, 0)
    assert drawn(regression([0.1, 2.0], [0.3, 0.4]), np.array([0, 0]))["pearson"] == 0
    found = regression(GOLD, PREDICTED)
    for i in range(100):
        # Seven times one example, whose variance is at most a rounding error.
        same = drawn(found, np.full(7, i))
        assert (same["pearson"], same["spearman"]) == (0, 0)
    assert regression([1.0], [2.0]).values == {"mse": 1.0, "mae": 1.0, "pearson": 0.0, "spearman": 0.0}


def test_a_perfect_prediction():
    found = regression(GOLD, GOLD).measured()
    assert (found["mse"], found["mse"].high) == (0, 0)
    assert (found["pearson"].low, found["spearman"].low) == pytest.approx((1, 1))
    assert regression(GOLD, -GOLD).values["spearman"] == pytest.approx(-1)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(DataError, match="0 examples"):
        regression([], [])
    with pytest.raises(DataError, match="2 and 1 examples"):
        regression([1.0, 2.0], [1.0])
    with pytest.raises(DataError, match=r"gold values \(2, 2\) and predictions \(2,\); give arrays of one shape"):
        regression(np.ones((2, 2)), np.ones(2))
    with pytest.raises(DataError, match="the prediction of example 1 is "):
        regression([1.0, 2.0], [1.0, np.nan])
    with pytest.raises(DataError, match="2 targets and the names"):
        regression(np.ones((2, 2)), np.ones((2, 2)))
