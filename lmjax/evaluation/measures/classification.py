"""The metrics of classification with single labels."""

from collections.abc import Sequence

import numpy as np

from lmjax.evaluation.labels import label_metrics
from lmjax.objectives.classification import LABEL, Classification
from lmjax.objectives.records import Prediction


def metrics(
    task: Classification, truths: Sequence[Prediction], predictions: Sequence[Prediction], resamples: int
) -> dict[str, float]:
    """Returns `label_metrics`."""
    gold = [task.numbers[str(truth[LABEL])] for truth in truths]
    scores = np.array([list(each["scores"].values()) for each in predictions])
    return label_metrics(gold, scores, task.config.labels, resamples)
