"""Metrics of predicted classes: one label, several labels or ordered classes of each example; calibration.

The metrics are scikit-learn's. Those of bootstrap draws are computed here from counts, all draws at once; the tests
check them against scikit-learn. A ratio whose denominator is 0 counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmjax.errors import DataError
from lmjax.evaluation.intervals import Measurement, check_examples, of_sums, ratio, required

# Equal-width bins of the expected calibration error, as in Guo et al. 2017 (arXiv:1706.04599), section 5.
BINS = 15
_KINDS = ("precision", "recall", "f1")


class Reliability(NamedTuple):
    """What confidence is worth: examples, mean confidence and accuracy of each bin of confidence, `[bins]`.

    Mean confidence and accuracy of an empty bin are 0.
    """

    examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def single_label(gold: Sequence[int], predicted: Sequence[int], labels: Sequence[str]) -> Measurement:
    """Returns `accuracy`, `matthews` (the correlation), and `precision`, `recall` and `f1` with averages.

    Each of the last three is given for `macro`, `micro`, and each label, such as "f1 macro" or "f1 positive". Macro
    averages are over all labels, also those that do not occur.

    Args:
        gold: numbers of the labels, `[examples]`.
        predicted: likewise.
        labels: their names.

    Raises:
        DataError: no examples, not as many predictions, or the number of a label that does not exist.
    """
    gold, predicted = _classes(gold, predicted, len(labels))
    metrics = required("sklearn.metrics")
    # With a single label it is 0 divided by 0, and scikit-learn warns.
    several = len(np.union1d(gold, predicted)) > 1
    values = {
        "accuracy": float(metrics.accuracy_score(gold, predicted)),
        "matthews": float(metrics.matthews_corrcoef(gold, predicted)) if several else 0.0,
    }
    values |= _precision_recall_f1(gold, predicted, labels, list(range(len(labels))))
    cells, kinds = np.unique(np.stack([gold, predicted], axis=1), axis=0, return_inverse=True)
    there, found = np.eye(len(labels))[cells].transpose(1, 0, 2)

    def of_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
        hits, n_found, n_there = (counts @ of for of in (there * found, found, there))
        total, right = counts.sum(axis=-1), hits.sum(axis=-1)
        product, squares = right * total - (n_found * n_there).sum(axis=-1), 1.0
        for each in (n_found, n_there):
            squares = squares * (total**2 - (each**2).sum(axis=-1))
        counted = {"accuracy": right / total, "matthews": ratio(product, np.sqrt(squares))}
        return counted | of_hits(hits, n_found, n_there, labels)

    return Measurement(values, kinds.reshape(-1), of_counts)


def multi_label(gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> Measurement:
    """Returns `subset_accuracy`, and `precision`, `recall` and `f1` as of `single_label`.

    The subset accuracy is the share of examples all of whose labels are right.

    Args:
        gold: whether an example has a label, bool or 0 and 1, `[examples, labels]`.
        predicted: likewise.
        labels: their names.

    Raises:
        DataError: no examples, or not the same shapes.
    """
    check_examples(gold, predicted)
    gold, predicted = np.asarray(gold), np.asarray(predicted)
    for each in (gold, predicted):
        if each.shape != (len(gold), len(labels)) or not np.isin(each, (0, 1)).all():
            raise DataError(f"labels of shape {each.shape}; give 0 or 1 for each of {len(labels)} labels")
    gold, predicted = gold.astype(int), predicted.astype(int)
    # scikit-learn takes a single column for the two classes 0 and 1, of which the second is the label.
    columns = (gold, predicted, labels, None) if len(labels) > 1 else (gold[:, 0], predicted[:, 0], labels, [1])
    values = {"subset_accuracy": float(required("sklearn.metrics").accuracy_score(gold, predicted))}
    values |= _precision_recall_f1(*columns)
    size = len(labels)

    def of(sums: np.ndarray) -> dict[str, np.ndarray]:
        parts = (sums[:, i * size : (i + 1) * size] for i in range(3))
        return {"subset_accuracy": sums[:, -1] / sums[:, -2]} | of_hits(*parts, labels)

    right = (gold == predicted).all(axis=1, keepdims=True)
    return of_sums(np.hstack([gold * predicted, predicted, gold, np.ones_like(right), right]), of, values)


def ordered(gold: Sequence[int], predicted: Sequence[int]) -> Measurement:
    """Returns `mae`, the mean distance in classes, and `quadratic_kappa` of classes that have an order.

    The latter is Cohen's kappa with quadratic weights (Cohen 1968); 0 if all are of one class.

    Args:
        gold: numbers of the classes in their order, `[examples]`.
        predicted: likewise.

    Raises:
        DataError: no examples, or not as many predictions.
    """
    gold, predicted = _classes(gold, predicted)
    metrics = required("sklearn.metrics")
    several = len(np.union1d(gold, predicted)) > 1
    numbers = list(range(int(max(gold.max(), predicted.max())) + 1))
    kappa = metrics.cohen_kappa_score(gold, predicted, labels=numbers, weights="quadratic") if several else 0.0
    values = {"mae": float(metrics.mean_absolute_error(gold, predicted)), "quadratic_kappa": float(kappa)}

    def of(sums: np.ndarray) -> dict[str, np.ndarray]:
        total, distance, squares, ones, others, own = sums.T
        expected = own - 2 * ones * others / total
        return {"mae": distance / total, "quadratic_kappa": np.where(expected > 0, 1 - ratio(squares, expected), 0.0)}

    apart = gold - predicted
    columns = (np.ones_like(gold), np.abs(apart), apart**2, gold, predicted, gold**2 + predicted**2)
    return of_sums(np.stack(columns, axis=1), of, values)


def calibration(gold: Sequence[int], probabilities: np.ndarray, bins: int = BINS) -> Measurement:
    """Returns `ece` and `brier`.

    `ece` is the expected calibration error of the likeliest class (Guo et al. 2017, arXiv:1706.04599, section 2): the
    mean distance between confidence and accuracy of `bins` bins of equal width, closed on the right, weighted by their
    examples. It is at least 0 and grows with noise, so its interval lies high where examples are few. `brier` is the
    squared distance between the probabilities and the gold class, summed over the classes (Brier 1950): from 0 to 2.

    Args:
        gold: numbers of the classes, `[examples]`.
        probabilities: `[examples, classes]`.
        bins: of equal width from 0 to 1.

    Raises:
        DataError: no examples, or not as many probabilities, or the number of a class that does not exist.
    """
    gold, best, confidence = _likeliest(gold, probabilities)
    squares = ((np.asarray(probabilities, np.float64) - np.eye(np.shape(probabilities)[1])[gold]) ** 2).sum(axis=1)
    gap = np.eye(bins)[_bin(confidence, bins)] * (confidence - (best == gold))[:, None]
    rows = np.column_stack([np.ones(len(gold)), squares, gap])

    def of(sums: np.ndarray) -> dict[str, np.ndarray]:
        total = sums[:, 0]
        return {"ece": np.abs(sums[:, 2:]).sum(axis=1) / total, "brier": sums[:, 1] / total}

    return of_sums(rows, of)


def reliability(gold: Sequence[int], probabilities: np.ndarray, bins: int = BINS) -> Reliability:
    """Returns the accuracy of each bin of confidence; arguments and errors as of `calibration`."""
    gold, best, confidence = _likeliest(gold, probabilities)
    of = _bin(confidence, bins)
    counts, sums, right = (np.bincount(of, x, minlength=bins) for x in (None, confidence, best == gold))
    return Reliability(counts, ratio(sums, counts), ratio(right, counts))


def confusion(gold: Sequence[int], predicted: Sequence[int], classes: int) -> np.ndarray:
    """Returns the number of examples of each gold class (row) and predicted class (column), `[classes, classes]`."""
    gold, predicted = _classes(gold, predicted, classes)
    return required("sklearn.metrics").confusion_matrix(gold, predicted, labels=list(range(classes)))


def of_hits(hits: np.ndarray, found: np.ndarray, there: np.ndarray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns precision, recall and F1: `macro`, `micro`, and of each label.

    Args:
        hits: how often a label was rightly predicted, `[draws, labels]`.
        found: how often it was predicted.
        there: how often it is in the gold data.
        labels: their names.
    """
    metrics = {}
    for kind, part, whole in zip(_KINDS, (hits, hits, 2 * hits), (found, there, found + there), strict=True):
        each = ratio(part, whole)
        metrics[f"{kind} macro"] = each.mean(axis=-1)
        metrics[f"{kind} micro"] = ratio(part.sum(axis=-1), whole.sum(axis=-1))
        metrics |= {f"{kind} {name}": x for name, x in zip(labels, each.T, strict=True)}
    return metrics


def _precision_recall_f1(
    gold: np.ndarray, predicted: np.ndarray, names: Sequence[str], numbers: list[int] | None
) -> dict[str, float]:
    """Returns scikit-learn's values of the metrics of `of_hits`, in their order; `numbers` are those of the labels."""
    score = required("sklearn.metrics").precision_recall_fscore_support
    found = [
        np.atleast_1d(score(gold, predicted, labels=numbers, average=average, zero_division=0.0)[:3])
        for average in ("macro", "micro", None)
    ]
    columns = [np.reshape(each, (3, -1)) for each in found]
    names = ("macro", "micro", *names)
    table = np.hstack(columns)
    return {f"{k} {n}": float(x) for k, row in zip(_KINDS, table, strict=True) for n, x in zip(names, row, strict=True)}


def _classes(gold: Sequence[int], predicted: Sequence[int], classes: int | None = None) -> list[np.ndarray]:
    """Returns the numbers of classes as two arrays; raises DataError for numbers that are none."""
    check_examples(gold, predicted)
    arrays = np.asarray(gold), np.asarray(predicted)
    for each in arrays:
        if each.ndim != 1 or each.dtype.kind not in "iub" or each.min() < 0:
            raise DataError(f"classes of shape {each.shape} and type {each.dtype}; give one number from 0 an example")
        if classes is not None and each.max() >= classes:
            raise DataError(f"class {each.max()} of {classes}, which are counted from 0; give a class that exists")
    return [each.astype(np.int64) for each in arrays]


def _likeliest(gold: Sequence[int], probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the gold classes, the likeliest ones, and their probabilities."""
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or not np.isfinite(probabilities).all():
        raise DataError(f"probabilities of shape {probabilities.shape}; give a finite one for each example and class")
    gold, best = _classes(gold, probabilities.argmax(axis=1) if len(probabilities) else [], probabilities.shape[1])
    return gold, best, probabilities.max(axis=1)


def _bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Returns the number of the bin of each confidence; bins are closed on the right."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
