"""The metrics of regression, in the data's own units."""

from collections.abc import Sequence

from lmjax.evaluation.intervals import Measurement
from lmjax.evaluation.regression import regression
from lmjax.objectives.records import Prediction
from lmjax.objectives.regression import Regression


def metrics(task: Regression, truths: Sequence[Prediction], predictions: Sequence[Prediction]) -> Measurement:
    """Returns squared and absolute error, and the correlations of Pearson and Spearman."""
    gold, predicted = ([[each[name] for name in task.gold] for each in of] for of in (truths, predictions))
    return regression(gold, predicted, task.gold)
