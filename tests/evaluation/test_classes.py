"""Metrics of classes are scikit-learn's, over all examples and in every draw of the bootstrap."""

import time

import numpy as np
import pytest
from sklearn import metrics as sk

from lmjax.errors import DataError
from lmjax.evaluation.classes import calibration, confusion, multi_label, ordered, reliability, single_label
from lmjax.evaluation.intervals import compare

RNG = np.random.default_rng(0)
LABELS = ("no", "yes", "perhaps", "never")
GOLD = RNG.choice(3, size=200, p=[0.7, 0.2, 0.1])  # the last label never occurs
PREDICTED = np.where(RNG.random(200) < 0.6, GOLD, RNG.integers(4, size=200))


def drawn(measurement, picked):
    """The metrics of a draw of examples, computed from its counts."""
    counts = np.bincount(measurement.kinds[picked], minlength=measurement.kinds.max() + 1)
    return {name: float(x[0]) for name, x in measurement.of_counts(counts[None].astype(float)).items()}


DRAWS = [np.arange(200), *(RNG.integers(200, size=200) for _ in range(3)), np.zeros(200, int)]


def averages(gold, predicted, names, **options):
    found = {}
    for average, keys in (("macro", ["macro"]), ("micro", ["micro"]), (None, names)):
        scores = sk.precision_recall_fscore_support(gold, predicted, average=average, zero_division=0.0, **options)
        for kind, values in zip(("precision", "recall", "f1"), scores[:3], strict=True):
            found |= {f"{kind} {key}": x for key, x in zip(keys, np.atleast_1d(values), strict=True)}
    return found


@pytest.mark.parametrize("picked", DRAWS)
def test_single_labels(picked):
    gold, predicted = GOLD[picked], PREDICTED[picked]
    several = len(np.union1d(gold, predicted)) > 1
    expected = averages(gold, predicted, LABELS, labels=range(4)) | {
        "accuracy": sk.accuracy_score(gold, predicted),
        "matthews": sk.matthews_corrcoef(gold, predicted) if several else 0.0,
    }
    assert single_label(gold, predicted, LABELS).values == pytest.approx(expected)
    assert drawn(single_label(GOLD, PREDICTED, LABELS), picked) == pytest.approx(expected)


@pytest.mark.parametrize("picked", DRAWS)
@pytest.mark.parametrize("size", [4, 1])
def test_several_labels(picked, size):
    whole = [(np.random.default_rng(i).random((200, size)) < [0.5, 0.2, 0.05, 0.0][:size]).astype(int) for i in (0, 1)]
    gold, predicted = (each[picked] for each in whole)
    one = {"labels": [1]} if size == 1 else {}
    expected = averages(*(each.ravel() if size == 1 else each for each in (gold, predicted)), LABELS[:size], **one)
    expected |= {"subset_accuracy": (gold == predicted).all(axis=1).mean()}
    assert multi_label(gold.astype(bool), predicted, LABELS[:size]).values == pytest.approx(expected)
    assert drawn(multi_label(*whole, LABELS[:size]), picked) == pytest.approx(expected)


@pytest.mark.parametrize("picked", DRAWS)
def test_ordered_classes(picked):
    gold, predicted = GOLD[picked], PREDICTED[picked]
    several = len(np.union1d(gold, predicted)) > 1
    expected = {
        "mae": sk.mean_absolute_error(gold, predicted),
        "quadratic_kappa": sk.cohen_kappa_score(gold, predicted, weights="quadratic") if several else 0.0,
    }
    assert ordered(gold, predicted).values == pytest.approx(expected)
    assert drawn(ordered(GOLD, PREDICTED), picked) == pytest.approx(expected)


def test_order_counts():
    """Classes that are never predicted have their places: 0 for 3 is worse than 0 for 1."""
    near, far = ordered([0, 1, 0, 1], [0, 0, 0, 1]), ordered([0, 3, 0, 3], [0, 0, 0, 3])
    assert (near.values["mae"], far.values["mae"]) == (0.25, 0.75)
    gap = ([0, 1, 3, 3], [0, 3, 3, 1])
    expected = sk.cohen_kappa_score(*gap, labels=range(4), weights="quadratic")
    assert ordered(*gap).values["quadratic_kappa"] == pytest.approx(expected)
    assert ordered([0, 1, 2], [0, 1, 2]).values["quadratic_kappa"] == 1
    assert ordered([0, 1, 2], [2, 1, 0]).values["quadratic_kappa"] == pytest.approx(-1)


def test_calibration_by_hand():
    """Two examples of confidence 0.9, one of them right; and two of 0.6, both right."""
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    found = calibration([0, 1, 1, 1], scores, bins=5)
    assert found.values["ece"] == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    assert found.values["brier"] == pytest.approx((2 * 0.1**2 + 2 * 0.9**2 + 4 * 0.4**2) / 4)
    bins = reliability([0, 1, 1, 1], scores, bins=5)
    np.testing.assert_array_equal(bins.examples, [0, 0, 2, 0, 2])
    np.testing.assert_allclose(bins.confidence, [0, 0, 0.6, 0, 0.9])
    np.testing.assert_allclose(bins.accuracy, [0, 0, 1.0, 0, 0.5])
    # The right end of a bin belongs to it.
    np.testing.assert_array_equal(reliability([0, 0], [[0.75, 0.25], [0.5, 0.5]], bins=4).examples, [0, 1, 1, 0])


@pytest.mark.parametrize("picked", DRAWS)
def test_calibration(picked):
    scores = np.random.default_rng(5).dirichlet(np.ones(4), size=200)
    found = drawn(calibration(GOLD, scores), picked)
    again = calibration(GOLD[picked], scores[picked])
    assert found == pytest.approx(dict(again.values))
    onehot = np.eye(4)[GOLD[picked]]
    assert found["brier"] == pytest.approx(((onehot - scores[picked]) ** 2).sum(axis=1).mean())
    bins = reliability(GOLD[picked], scores[picked])
    assert found["ece"] == pytest.approx((bins.examples * abs(bins.accuracy - bins.confidence)).sum() / 200)


def test_the_bins_are_scikit_learns():
    """Of two classes, whose likeliest one has confidences from 0.5 on."""
    from sklearn.calibration import calibration_curve

    chance = np.random.default_rng(6).uniform(0.5, 1, size=300)
    gold = (np.random.default_rng(7).random(300) < chance).astype(int)
    bins = reliability(gold, np.stack([1 - chance, chance], axis=1), bins=10)
    there = bins.examples > 0
    expected = calibration_curve(gold, chance, n_bins=10)
    np.testing.assert_allclose((bins.accuracy[there], bins.confidence[there]), expected)


def test_the_confusion_matrix_has_every_class():
    found = confusion([0, 2, 2], [0, 1, 2], 4)
    assert found.shape == (4, 4)
    assert (found[0, 0], found[2, 1], found[2, 2], found.sum()) == (1, 1, 1, 3)


def test_a_comparison_is_paired():
    """The second system corrects eight answers of the first and spoils none."""
    better = PREDICTED.copy()
    wrong = np.flatnonzero(PREDICTED != GOLD)[:8]
    better[wrong] = GOLD[wrong]
    found = compare(single_label(GOLD, better, LABELS), single_label(GOLD, PREDICTED, LABELS))["accuracy"]
    assert found.value == pytest.approx(8 / 200)
    assert found.low > 0.01
    assert found.p < 0.05


def test_many_draws_take_little_time():
    """1,000 draws of a metric of 10,000 examples; calling scikit-learn for each took 5 seconds."""
    gold = RNG.integers(3, size=10_000)
    predicted = np.where(RNG.random(10_000) < 0.8, gold, RNG.integers(3, size=10_000))
    begin = time.process_time()
    single_label(gold, predicted, LABELS[:3]).measured()
    assert time.process_time() - begin < 1


def test_what_is_no_class_is_refused():
    with pytest.raises(DataError, match="0 examples"):
        single_label([], [], LABELS)
    with pytest.raises(DataError, match="0 examples"):
        calibration([], np.zeros((0, 3)))
    with pytest.raises(DataError, match="3 and 2 examples"):
        ordered([0, 1, 2], [0, 1])
    with pytest.raises(DataError, match="class 4 of 4, which are counted from 0"):
        single_label([0], [4], LABELS)
    with pytest.raises(DataError, match="give one number from 0 an example"):
        single_label([-1], [0], LABELS)
    with pytest.raises(DataError, match="give one number from 0 an example"):
        single_label(["no"], [0], LABELS)
    with pytest.raises(DataError, match="give 0 or 1 for each of 4 labels"):
        multi_label(np.full((2, 4), 0.5), np.zeros((2, 4)), LABELS)
    with pytest.raises(DataError, match="give 0 or 1 for each of 4 labels"):
        multi_label(np.zeros((2, 4)), np.zeros((2, 3)), LABELS)
    with pytest.raises(DataError, match="give a finite one for each"):
        calibration([0], np.array([[np.nan, 1.0]]))
