"""The metrics of reward models: how often the better answer has the larger reward, and by how much."""

from collections.abc import Sequence

from lmjax.evaluation.intervals import Measurement, of_means
from lmjax.objectives.records import Prediction
from lmjax.objectives.reward import Reward


def metrics(task: Reward, truths: Sequence[Prediction], predictions: Sequence[Prediction]) -> Measurement:
    """Returns `accuracy` and `margin`, the mean difference of the rewards of two answers."""
    right = [task.right(*pair) for pair in zip(truths, predictions, strict=True)]
    return of_means({"accuracy": right, "margin": [each["margin"] for each in predictions]})
