"""How well a classifier finds the labels of texts: scikit-learn's metrics with bootstrap intervals over examples.

The only module that needs scikit-learn (extra `evaluate`): it is imported when metrics are computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmjax.errors import FlagError
from lmjax.streams import random_stream

# Ends of a 95 % interval, in percent, as they are named behind a metric.
BOUNDS = (2.5, 97.5)


def label_metrics(
    gold: Sequence[int], probabilities: np.ndarray, labels: Sequence[str], resamples: int = 1000
) -> dict[str, float]:
    """Returns scikit-learn's metrics by name, each with the ends of its 95 % interval.

    Precision, recall and F1 of each label, and their macro and micro averages; accuracy; Matthews' correlation. An
    interval is that of the percentile bootstrap over examples (Efron and Tibshirani 1993, section 13.3): the metrics
    depend on the counts of (label, prediction) alone, so counts are drawn in place of examples. A ratio whose
    denominator is 0 counts as 0.

    Args:
        gold: numbers of the labels, `[examples]`.
        probabilities: `[examples, labels]`.
        labels: their names.
        resamples: draws of the bootstrap; 0: no intervals.
    """
    predicted = np.argmax(probabilities, axis=-1)
    cells, counts = np.unique(np.stack([np.asarray(gold), predicted]), axis=1, return_counts=True)
    metrics = _metrics(cells, counts, labels)
    import sklearn

    if not resamples:
        return metrics
    # The arguments were checked above; to check those of every draw takes longer than the metrics.
    drawn = random_stream(0, "bootstrap").multinomial(counts.sum(), counts / counts.sum(), size=resamples)
    with sklearn.config_context(skip_parameter_validation=True):
        found = [_metrics(cells, weights, labels) for weights in drawn]
    ends = {name: np.percentile([each[name] for each in found], BOUNDS) for name in metrics}
    for name, values in ends.items():
        metrics |= {bound(name, percent): float(x) for percent, x in zip(BOUNDS, values, strict=True)}
    return metrics


def bound(name: str, percent: float) -> str:
    """Returns the name of one end of a metric's interval."""
    return f"{name} {percent:g}%"


def _metrics(cells: np.ndarray, weights: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """Returns the metrics of examples given as int `[2, cells]` (label, prediction) and the count of each cell."""
    try:
        from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support
    except ImportError as e:
        raise FlagError('scikit-learn is not installed: pip install "lmjax[evaluate]"') from e
    there = weights > 0
    arguments = {"y_true": cells[0][there], "y_pred": cells[1][there], "sample_weight": weights[there]}
    numbers = list(range(len(labels)))
    # With a single label it is 0 divided by 0, and scikit-learn warns.
    several = len(np.unique(cells[:, there])) > 1
    metrics = {
        "accuracy": accuracy_score(**arguments),
        "matthews": matthews_corrcoef(**arguments) if several else 0.0,
    }
    found = precision_recall_fscore_support(**arguments, labels=numbers, average=None, zero_division=0.0)
    for kind, values in zip(("precision", "recall", "f1"), found[:3], strict=True):
        # Of single labels, all of which count, the micro averages are the accuracy, and the macro averages the means.
        metrics |= {f"{kind} macro": np.mean(values), f"{kind} micro": metrics["accuracy"]}
        metrics |= {f"{kind} {name}": x for name, x in zip(labels, values, strict=True)}
    return {name: float(x) for name, x in metrics.items()}
