"""An evaluation set that stands in part in the training data: how much of it, and the metrics with and without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lmjax.audit.bench import means
from lmjax.audit.duplicates import NGRAM, contamination
from lmjax.audit.findings import Finding, Section, findings_of
from lmjax.data.documents import Document
from lmjax.evaluation.intervals import Measured
from lmjax.evaluation.tasks import Data, evaluate
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.score.score import DEFAULT
from lmjax.inference.score.texts import ScoreConfig

_LISTED = 10
# Counts among the metrics of `evaluate`.
_COUNTS = ("tokens", "bytes", "records")


def text_of(record: Any) -> str:
    """Returns the text of an example: of a record or a pair, all its texts."""
    if isinstance(record, str):
        return record
    if isinstance(record, Document):
        return record.text
    return "\n".join(text_of(part) for part in record if isinstance(part, str | Sequence))


def parts(data: Data, dirty: Sequence[bool]) -> dict[str, Data]:
    """Returns the clean and the contaminated examples as sets; none if all examples are of one kind."""
    if all(dirty) or not any(dirty):
        return {}
    return {
        name: Data(*([of[i] for i, there in enumerate(dirty) if there == wanted] for of in data))
        for name, wanted in (("clean", False), ("contaminated", True))
    }


def overlap(texts: Sequence[str], shares: np.ndarray, size: int, files: Sequence[tuple[str, str]]) -> Section:
    """Returns how much of an evaluation set stands in the training data.

    Args:
        texts: of the examples.
        shares: of the n-grams of each that stand there, as of `duplicates.contamination`.
        size: words of an n-gram.
        files: of the evaluation set, with their fingerprints.
    """
    made = means({"contaminated, %": 100.0 * (shares > 0), "n-grams in the data, %": 100 * shares})
    worst = sorted(((x, -i) for i, x in enumerate(shares) if x > 0), reverse=True)[:_LISTED]
    rows = [("share", "number", "text")]
    rows += [(f"{x:.0%}", f"{1 - i:,}", texts[-i].strip()[:120]) for x, i in worst]
    note = (
        f"An example is contaminated if {size} words of it in a row stand in the data, in lower case and without "
        "punctuation (Brown et al. 2020, appendix C); a shorter one, if all its words do."
    )
    found = findings_of(made.measurement, None, made.counts)
    return Section("Contamination", note, found, files, rows, "Examples with most of their n-grams in the data")


def section(
    loaded: LoadedModel,
    data: Data,
    training: Iterable[str],
    *,
    task: str,
    files: Sequence[tuple[str, str]],
    size: int = NGRAM,
    config: ScoreConfig = DEFAULT,
) -> Section:
    """Returns how much of an evaluation set stands in the training data, and the metrics with and without that.

    Args:
        loaded: the model.
        data: the evaluation set, as of `tasks.read`.
        training: the texts of the training data, which are read once.
        task: of `tasks.evaluate`, which gives the metrics.
        files: of the evaluation set, with their fingerprints.
        size: words of an n-gram.
        config: of scoring.
    """
    texts = [text_of(record) for record in data.records]
    shares = contamination(texts, training, size)
    found = overlap(texts, shares, size, files)
    findings = list(found.findings)
    split = parts(data, (shares > 0).tolist())
    for name, own in {"all": data, **split}.items():
        metrics = evaluate(loaded, own, config, task=task)
        findings += [
            Finding(f"{metric}: {name}", value if isinstance(value, Measured) else Measured(value), len(own.records))
            for metric, value in metrics.items()
            if metric not in _COUNTS
        ]
    note = f"{found.note} A model that has learned the contaminated examples by heart is better on these."
    if not split:
        note += " All examples are of one kind, so there is nothing to compare."
    return found._replace(note=note, findings=findings)
