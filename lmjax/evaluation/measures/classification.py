"""The metrics of classification with single labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmjax.evaluation.classes import calibration, confusion, reliability, single_label
from lmjax.evaluation.intervals import Measurement, joined
from lmjax.objectives.classification import LABEL, Classification
from lmjax.objectives.records import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def metrics(task: Classification, truths: Sequence[Prediction], predictions: Sequence[Prediction]) -> Measurement:
    """Returns the metrics of `classes.single_label` and of `classes.calibration`."""
    gold, scores = _arrays(task, truths, predictions)
    return joined(single_label(gold, scores.argmax(axis=-1), task.config.labels), calibration(gold, scores))


def figures(
    task: Classification, truths: Sequence[Prediction], predictions: Sequence[Prediction]
) -> dict[str, "Figure"]:
    """Returns a confusion matrix, a reliability diagram, precision-recall curves, and bars of F1 with intervals."""
    from lmjax.analysis.figures import bars, confusion_matrix, precision_recall_curves, reliability_diagram

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
