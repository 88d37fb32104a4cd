"""The metrics of classification with single labels."""

from collections.abc import Sequence

import numpy as np

from lmjax.evaluation.classes import calibration, single_label
from lmjax.evaluation.intervals import Measurement, joined
from lmjax.objectives.classification import LABEL, Classification
from lmjax.objectives.records import Prediction


def metrics(task: Classification, truths: Sequence[Prediction], predictions: Sequence[Prediction]) -> Measurement:
    """Returns the metrics of `classes.single_label` and of `classes.calibration`."""
    gold = [task.numbers[str(truth[LABEL])] for truth in truths]
    scores = np.array([list(each["scores"].values()) for each in predictions])
    return joined(single_label(gold, scores.argmax(axis=-1), task.config.labels), calibration(gold, scores))
