"""The metrics of classification: of single labels, several labels, and ordered classes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmjax.evaluation.classes import calibration, confusion, multi_label, ordered, reliability, single_label
from lmjax.evaluation.intervals import Measurement, joined
from lmjax.objectives.classification import LABEL, LABELS, Classification
from lmjax.objectives.records import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def metrics(task: Classification, truths: Sequence[Prediction], predictions: Sequence[Prediction]) -> Measurement:
    """Returns the metrics of `classes.single_label` and of `classes.calibration`.

    Ordered classes also have those of `classes.ordered`; several labels have those of `classes.multi_label` alone.
    """
    labels = task.config.labels
    if task.config.kind == "multiple":
        gold, predicted = (np.stack([task.marked(each[LABELS]) for each in of]) for of in (truths, predictions))
        return multi_label(gold, predicted, labels)
    gold, scores = _arrays(task, truths, predictions)
    best = scores.argmax(axis=-1)
    in_order = [ordered(gold, best)] if task.config.kind == "ordered" else []
    return joined(*in_order, single_label(gold, best, labels), calibration(gold, scores))


def figures(
    task: Classification, truths: Sequence[Prediction], predictions: Sequence[Prediction]
) -> dict[str, "Figure"]:
    """Returns a confusion matrix, a reliability diagram, precision-recall curves, and bars of F1 with intervals.

    Of several labels there are the bars alone.
    """
    from lmjax.analysis.figures import bars, confusion_matrix, precision_recall_curves, reliability_diagram

    if task.config.kind == "multiple":
        return {"f1": bars(metrics(task, truths, predictions).measured(), task.config.labels)}
    gold, scores = _arrays(task, truths, predictions)
    labels, predicted = task.config.labels, scores.argmax(axis=-1)
    return {
        "confusion": confusion_matrix(confusion(gold, predicted, len(labels)), labels),
        "reliability": reliability_diagram(reliability(gold, scores)),
        "precision_recall": precision_recall_curves(np.array(gold), scores, labels),
        "f1": bars(single_label(gold, predicted, labels).measured(), labels),
    }


def _arrays(
    task: Classification, truths: Sequence[Prediction], predictions: Sequence[Prediction]
) -> tuple[list[int], np.ndarray]:
    """Returns the numbers of the gold labels, and the probabilities `[examples, labels]`."""
    gold = [task.numbers[str(truth[LABEL])] for truth in truths]
    return gold, np.array([[each["scores"][label] for label in task.config.labels] for each in predictions])
