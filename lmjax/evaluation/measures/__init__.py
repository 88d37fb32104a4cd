"""Measures: the metrics of each task on records, from gold values and predictions, through well-kept libraries.

To add one: a file here with `metrics(task, truths, predictions)` and, if there are any, `figures`, and a line in
MEASURES under the name of the objective. Libraries of the extra `evaluate` are imported only when metrics are computed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lmjax.evaluation.intervals import Measurement
from lmjax.evaluation.measures import (
    classification,
    embedding,
    multiple_choice,
    question_answering,
    regression,
    reward,
    tagging,
)
from lmjax.objectives.classification import Classification
from lmjax.objectives.embedding import Embedding
from lmjax.objectives.multiple_choice import MultipleChoice
from lmjax.objectives.question_answering import QuestionAnswering
from lmjax.objectives.records import Prediction
from lmjax.objectives.regression import Regression
from lmjax.objectives.reward import Reward
from lmjax.objectives.tagging import Tagging
from lmjax.objectives.text_to_text import TextToText

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Measure(NamedTuple):
    """How the predictions of a task are measured.

    Attributes:
        metrics: from the task, the gold values and the predictions of all records to metrics by name, whose intervals
            and comparisons `intervals` computes.
        falling: names of the metrics that are better when they are lower.
        needs: modules of the extra `evaluate` that compute them.
        figures: from the same arguments to figures by name; None: there are none.
    """

    metrics: Callable[[Any, Sequence[Prediction], Sequence[Prediction]], Measurement]
    falling: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    figures: Callable[[Any, Sequence[Prediction], Sequence[Prediction]], Mapping[str, "Figure"]] | None = None


# The measures by the name of the objective.
MEASURES: dict[str, Measure] = {
    Classification.name: Measure(
        classification.metrics, falling=("ece", "brier", "mae"), needs=("sklearn",), figures=classification.figures
    ),
    Regression.name: Measure(regression.metrics, falling=("mse", "mae"), needs=("sklearn", "scipy")),
    Tagging.name: Measure(tagging.metrics),
    TextToText.name: Measure(classification.metrics, falling=("ece", "brier"), needs=("sklearn",)),
    QuestionAnswering.name: Measure(question_answering.metrics),
    MultipleChoice.name: Measure(multiple_choice.metrics, falling=("ece", "brier")),
    Reward.name: Measure(reward.metrics),
    Embedding.name: Measure(embedding.metrics, needs=("sklearn", "scipy")),
}
