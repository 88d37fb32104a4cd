"""The metrics of tagging: accuracy over words, and precision, recall and F1 of entities."""

from collections.abc import Sequence

import numpy as np

from lmjax.data.tag_schemes import entities
from lmjax.data.tagged_words import TAGS
from lmjax.evaluation.entities import entity_f1
from lmjax.evaluation.intervals import Measurement, joined, of_sums, ratio
from lmjax.objectives.records import Prediction
from lmjax.objectives.tagging import Tagging


def metrics(task: Tagging, truths: Sequence[Prediction], predictions: Sequence[Prediction]) -> Measurement:
    """Returns the accuracy over words, and `entity_f1` if labels mark entities and there is one; all over sentences."""
    gold = [truth[TAGS] for truth in truths]
    found = [each["tags"] for each in predictions]
    right = [[sum(a == b for a, b in zip(*pair, strict=True)), len(pair[0])] for pair in zip(gold, found, strict=True)]
    accuracy = of_sums(np.array(right), lambda sums: {"accuracy": ratio(sums[:, 0], sums[:, 1])})
    if not task.marks_entities or not any(entities(tags) for side in (gold, found) for tags in side):
        return accuracy
    return joined(accuracy, entity_f1(gold, found))
