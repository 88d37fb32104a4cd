"""Records of a task with their predictions: read from files, predicted, measured, and written as JSON values."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmjax.data.columns import Column, read_columns, read_record
from lmjax.data.documents import Document, unspaced
from lmjax.data.fields import Fields
from lmjax.data.files import Faults, find_files
from lmjax.data.record_format import RecordFormat
from lmjax.errors import DataError, FlagError
from lmjax.evaluation.intervals import RESAMPLES, Difference, McNemar, Measurement, compare, mcnemar
from lmjax.evaluation.measures import MEASURES
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.predict import predict
from lmjax.inference.score.score import DEFAULT
from lmjax.objectives.records import Prediction, RecordTask, TokenRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def columns_of(task: RecordTask, gold: bool) -> tuple[Column, ...]:
    """Returns the columns of a task's records; without `gold` they may lack what is predicted, which is not checked."""
    columns = type(task).known_columns(task.config)
    if gold:
        return columns
    # An integer cannot be absent, so it is not read.
    return tuple(
        c._replace(optional=True, classes=None) if c.name in task.gold else c
        for c in columns
        if c.name not in task.gold or c.type != "integer"
    )


def _format_of(task: RecordTask, gold: bool) -> RecordFormat:
    """Returns how a task's records stand in files; without `gold`, what is predicted is not checked."""
    return dataclasses.replace(type(task).record_format(task.config), gold=gold)


def read_documents(
    path: str,
    task: RecordTask,
    *,
    gold: bool = True,
    names: Mapping[str, str] | None = None,
    header: Sequence[str] = (),
) -> list[Document]:
    """Returns the records of a file or a glob of files, in order.

    Args:
        path: or glob.
        task: says which columns a record has.
        gold: whether each record must have what is predicted.
        names: the names of columns in the file, where they differ from the columns' own names.
        header: names of the columns of tables without a header; empty: the first row of a table is its header.

    Raises:
        DataError: the data cannot be read; the message names file and line.
    """
    columns, form = columns_of(task, gold), _format_of(task, gold)
    found = [
        document
        for file in find_files(path)
        for document in read_columns(file, Faults("error"), columns, names, record_format=form, header=header)
    ]
    if not found:
        raise DataError(f"--data: {path!r} holds no records; give it at least one")
    return found


def as_documents(records: Sequence[Mapping[str, Any]], task: RecordTask, *, gold: bool = True) -> list[Document]:
    """Returns records given as mappings from columns to values.

    Raises:
        FlagError: a record is no mapping.
        DataError: a record lacks a column, or a value has another type.
    """
    for i, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise FlagError(f"data[{i}]: {str(record)[:80]!r} is not a record; give {{'text': ...}} and the like")
    columns, form = columns_of(task, gold), _format_of(task, gold)
    return [
        read_record(f"data[{i}]", Fields(list(record.items())), columns, record_format=form)
        for i, record in enumerate(records)
    ]


def encoded(loaded: LoadedModel, documents: Sequence[Document], *, gold: bool = True) -> list[TokenRecord]:
    """Returns records with their texts as the ids of a model's tokenizer."""
    return TokenRecord.encoded(documents, columns_of(loaded.task, gold), loaded.tokenizer)


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The predictions of a model, or of an ensemble, for records with gold values.

    Attributes:
        task: what is predicted.
        truths: the gold values of each record.
        predictions: the prediction for each.
        documents: the records as they were read; empty: only their tokens are known, and there are no `lines`.
    """

    task: RecordTask
    truths: Sequence[Prediction]
    predictions: Sequence[Prediction]
    documents: Sequence[Document] = ()

    @functools.cached_property
    def measurement(self) -> Measurement:
        """Returns the metrics, from which intervals and comparisons follow."""
        return MEASURES[self.task.name].metrics(self.task, self.truths, self.predictions)

    def metrics(self, resamples: int = RESAMPLES) -> dict[str, float]:
        """Returns the metrics, each with its 95 % interval, and the number of records."""
        return self.measurement.measured(resamples) | {"records": len(self.truths)}

    def figures(self) -> Mapping[str, Figure]:
        """Returns the figures of the task by name."""
        made = MEASURES[self.task.name].figures
        return {} if made is None else made(self.task, self.truths, self.predictions)

    def lines(self) -> list[Mapping[str, Any]]:
        """Returns for each record its columns, its gold values, and its prediction, as `predict_documents` does."""
        columns = columns_of(self.task, gold=True)
        both = zip(self.documents, self.predictions, strict=True)
        return [_given(self.task, columns, document) | prediction for document, prediction in both]


def evaluate_models(
    models: Sequence[LoadedModel], documents: Sequence[Document], batch_tokens: int = DEFAULT.batch_tokens
) -> Evaluated:
    """Returns the predictions for records with gold values; those of several models are combined by `RecordTask.vote`.

    Args:
        models: fine-tuned for the same task, with the same labels.
        documents: read by `read_documents` for the task of the first model.
        batch_tokens: tokens of the rows that are computed together.

    Raises:
        FlagError: the models were not fine-tuned for the same task, or their predictions cannot be combined.
    """
    task = models[0].task
    for model in models[1:]:
        _check_same(task, model.task)
    found = []
    for model in models:
        records = encoded(model, documents)
        found.append(predict(model, records, batch_tokens // model.task.length))
    truths = [task.truth(record) for record in records]
    combined = found[0] if len(found) == 1 else [task.vote(each) for each in zip(*found, strict=True)]
    return Evaluated(task, truths, combined, documents)


def compared(first: Evaluated, second: Evaluated) -> tuple[dict[str, Difference], McNemar | None]:
    """Returns the difference of every metric on the same records, and McNemar's test if predictions are right or wrong.

    Raises:
        FlagError: the two predict different things.
    """
    _check_same(first.task, second.task)
    rights = [
        [each.task.right(*pair) for pair in zip(each.truths, each.predictions, strict=True)] for each in (first, second)
    ]
    test = None if None in rights[0] else mcnemar(*rights)
    return compare(first.measurement, second.measurement), test


def _check_same(task: RecordTask, other: RecordTask) -> None:
    """Raises FlagError if two models predict different things."""
    if _described(task) != _described(other):
        raise FlagError(
            f"the models predict different things: {_described(task)}, and {_described(other)}; compare or combine "
            "models that were fine-tuned for the same task and labels"
        )


def _described(task: RecordTask) -> str:
    """Returns the name of a task, its gold columns, and the labels that they can have, in alphabetical order."""
    columns = [c for c in columns_of(task, gold=True) if c.name in task.gold]
    return f"{task.name} of " + ", ".join(f"{c.name} ({', '.join(sorted(c.classes or (c.type,)))})" for c in columns)


def predict_documents(
    loaded: LoadedModel, documents: Sequence[Document], batch_size: int = 32
) -> list[Mapping[str, Any]]:
    """Returns for each record, read without gold: its texts and values, its gold value if it has one, its prediction.

    A single gold column is written as `gold`, several under their own names after `gold `.
    """
    task = loaded.task
    columns = columns_of(task, gold=False)
    found = predict(loaded, encoded(loaded, documents, gold=False), batch_size)
    return [_given(task, columns, document) | each for document, each in zip(documents, found, strict=True)]


def _given(task: RecordTask, columns: Sequence[Column], document: Document) -> dict[str, Any]:
    """Returns the columns of a record that are not empty, those with gold values last."""
    segments, counts, values = iter(document.segments), iter(document.counts), iter(document.values)
    whole: dict[str, Any] = {}
    for column in columns:
        if not column.tokenised:
            whole[column.name] = next(values)
            continue
        texts = [next(segments) for _ in range(next(counts))]
        whole[column.name] = (
            unspaced(texts) if column.type == "words" else texts if column.type == "texts" else texts[0]
        )
    there = {
        name: x
        for name, x in whole.items()
        if not (x in ("", (), []) and _optional(columns, name)) and not (isinstance(x, float) and math.isnan(x))
    }
    named = {name: "gold" if len(task.gold) == 1 else f"gold {name}" for name in task.gold}
    given = {name: x for name, x in there.items() if name not in named}
    return given | {named[name]: x for name, x in there.items() if name in named}


def _optional(columns: Sequence[Column], name: str) -> bool:
    return next(column.optional for column in columns if column.name == name)
