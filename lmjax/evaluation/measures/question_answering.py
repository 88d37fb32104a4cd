"""The metrics of question answering: exact match and F1 of answers."""

from collections.abc import Sequence

from lmjax.data.questions import ANSWERS
from lmjax.evaluation.answers import squad
from lmjax.evaluation.intervals import Measurement
from lmjax.objectives.question_answering import QuestionAnswering
from lmjax.objectives.records import Prediction


def metrics(task: QuestionAnswering, truths: Sequence[Prediction], predictions: Sequence[Prediction]) -> Measurement:
    """Returns the metrics of `squad`."""
    del task
    return squad([truth[ANSWERS] for truth in truths], [each["answer"] for each in predictions])
