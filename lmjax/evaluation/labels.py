"""How well a classifier finds the labels of texts: scikit-learn's metrics with bootstrap intervals over examples.

The only module that needs scikit-learn (extra `evaluate`): it is imported when metrics are computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.data.columns import read_columns
from lmjax.data.files import Faults, find_files
from lmjax.data.records import USUAL_NAMES, FieldNames
from lmjax.errors import DataError, FlagError
from lmjax.objectives.classification import Classification, ClassificationConfig
from lmjax.streams import random_stream

RESAMPLES = 1000
# Ends of a 95 % interval, in percent, as they are named behind a metric.
BOUNDS = (2.5, 97.5)


@dataclasses.dataclass(frozen=True)
class LabelledText:
    """One or two texts and their label.

    Attributes:
        text: the first text.
        second: the second text; empty: there is none.
        label: its name; empty: not known.
    """

    text: str
    second: str = ""
    label: str = ""


def read_labelled(
    path: str, labels: Sequence[str], *, needed: bool = True, names: FieldNames = USUAL_NAMES
) -> list[LabelledText]:
    """Returns the records of a file or a glob of files, in order.

    Args:
        path: or glob.
        labels: the labels that the model knows.
        needed: whether each record must have one of these labels; otherwise labels may be absent, and are not checked.
        names: of the fields.

    Raises:
        DataError: the data cannot be read, or a label is missing, empty or unknown; the message names file and line.
    """
    *texts, label = Classification.known_columns(ClassificationConfig(labels=tuple(labels)))
    columns = (*texts, label if needed else label._replace(optional=True, classes=None))
    found = []
    for file in find_files(path):
        for document in read_columns(file, Faults("error"), columns, names._asdict()):
            found.append(LabelledText(*document.segments, str(document.values[0])))
    if not found:
        raise DataError(f"--data: {path!r} holds no records; give it at least one")
    return found


def label_metrics(
    gold: Sequence[int], probabilities: np.ndarray, labels: Sequence[str], resamples: int = RESAMPLES
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


def predictions(
    texts: Sequence[LabelledText], probabilities: np.ndarray, labels: Sequence[str]
) -> list[Mapping[str, object]]:
    """Returns for each text a record with its text, gold label if it has one, predicted label, and all scores."""
    found = []
    for each, scores in zip(texts, probabilities, strict=True):
        best = int(np.argmax(scores))
        record: dict[str, object] = {"text": each.text} | ({"text2": each.second} if each.second else {})
        record |= {"gold": each.label} if each.label else {}
        record |= {"label": labels[best], "score": float(scores[best])}
        found.append(record | {"scores": {name: float(x) for name, x in zip(labels, scores, strict=True)}})
    return found
