"""The metrics of vectors of texts: correlations of cosines with gold scores, and the order of triplets."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lmjax.evaluation.intervals import Measurement, of_means
from lmjax.evaluation.regression import regression
from lmjax.objectives.embedding import SCORE, Embedding
from lmjax.objectives.records import Prediction

# The errors of `regression` say nothing here, because scores have another range than cosines.
_KEPT = ("spearman", "pearson")


def metrics(task: Embedding, truths: Sequence[Prediction], predictions: Sequence[Prediction]) -> Measurement:
    """Returns the correlations of cosines with scores if the records have them, otherwise the mean cosine of pairs.

    Similarity is measured by Spearman's correlation (Reimers and Gurevych 2019, arXiv:1908.10084, section 4). Triplets
    have an accuracy too: one is right if the cosine of its second text is higher than that of its negative. Single
    texts have no metric.
    """
    del task
    gold = [truth[SCORE] for truth in truths]
    if not any(map(math.isnan, gold)):
        found = regression(gold, [each["similarity"] for each in predictions])
        return dataclasses.replace(
            found,
            values={name: found.values[name] for name in _KEPT},
            of_counts=lambda counts: {name: x for name, x in found.of_counts(counts).items() if name in _KEPT},
        )
    if not all("similarity" in each for each in predictions):
        return Measurement({}, np.zeros(len(gold), np.int64), lambda counts: {})
    columns = {"cosine": [each["similarity"] for each in predictions]}
    if all("negative similarity" in each for each in predictions):
        columns["accuracy"] = [each["similarity"] > each["negative similarity"] for each in predictions]
    return of_means(columns)
