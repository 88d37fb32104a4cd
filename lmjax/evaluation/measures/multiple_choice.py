"""The metrics of multiple choice: accuracy, the accuracy of guesses, and calibration."""

from collections.abc import Sequence

import numpy as np

from lmjax.evaluation.classes import calibration
from lmjax.evaluation.intervals import Measurement, joined, of_means
from lmjax.objectives.multiple_choice import LABEL, MultipleChoice
from lmjax.objectives.records import Prediction


def metrics(task: MultipleChoice, truths: Sequence[Prediction], predictions: Sequence[Prediction]) -> Measurement:
    """Returns `accuracy`, `chance` (the accuracy of guesses), and the metrics of `classes.calibration`.

    Choices that a record does not have count as classes of probability 0.
    """
    right = [task.right(*pair) for pair in zip(truths, predictions, strict=True)]
    chance = [1 / len(each["scores"]) for each in predictions]
    scores = np.zeros((len(predictions), max(len(each["scores"]) for each in predictions)))
    for row, each in zip(scores, predictions, strict=True):
        row[: len(each["scores"])] = each["scores"]
    gold = [truth[LABEL] for truth in truths]
    return joined(of_means({"accuracy": right, "chance": chance}), calibration(gold, scores))
