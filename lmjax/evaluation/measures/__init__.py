"""Measures: the metrics of each task on records, from gold values and predictions, through well-kept libraries.

To add one: a file here with `metrics(task, truths, predictions, resamples)`, and a line in MEASURES under the name of
the objective. Libraries of the extra `evaluate` are imported only when metrics are computed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lmjax.evaluation.measures import classification
from lmjax.objectives.classification import Classification
from lmjax.objectives.records import Prediction

RESAMPLES = 1000


class Measure(NamedTuple):
    """How the predictions of a task are measured.

    Attributes:
        metrics: from the task, the gold values and the predictions of all records, and the draws of the bootstrap (0:
            no intervals) to metrics by name, the ends of intervals named by `labels.bound`.
        falling: names of the metrics that are better when they are lower.
    """

    metrics: Callable[[Any, Sequence[Prediction], Sequence[Prediction], int], dict[str, float]]
    falling: tuple[str, ...] = ()


# The measures by the name of the objective.
MEASURES: dict[str, Measure] = {
    Classification.name: Measure(classification.metrics),
}
