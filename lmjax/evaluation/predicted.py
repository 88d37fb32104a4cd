"""Records of a task with their predictions: read from files, predicted, measured, and written as JSON values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.data.columns import Column, read_columns, read_record
from lmjax.data.documents import Document, unspaced
from lmjax.data.fields import Fields
from lmjax.data.files import Faults, find_files
from lmjax.data.record_format import RecordFormat
from lmjax.errors import DataError, FlagError
from lmjax.evaluation.intervals import RESAMPLES
from lmjax.evaluation.measures import MEASURES
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.predict import predict
from lmjax.objectives.records import Prediction, RecordTask, TokenRecord


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
    path: str, task: RecordTask, *, gold: bool = True, names: Mapping[str, str] | None = None
) -> list[Document]:
    """Returns the records of a file or a glob of files, in order.

    Args:
        path: or glob.
        task: says which columns a record has.
        gold: whether each record must have what is predicted.
        names: the names of columns in the file, where they differ from the columns' own names.

    Raises:
        DataError: the data cannot be read; the message names file and line.
    """
    columns, form = columns_of(task, gold), _format_of(task, gold)
    found = [
        document
        for file in find_files(path)
        for document in read_columns(file, Faults("error"), columns, names, record_format=form)
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


def measure(task: RecordTask, records: Sequence[TokenRecord], found: Sequence[Prediction]) -> dict[str, float]:
    """Returns the metrics of predictions, each with the ends of its 95 % interval, and the number of records."""
    truths = [task.truth(record) for record in records]
    return MEASURES[task.name].metrics(task, truths, found).measured(RESAMPLES) | {"records": len(records)}


def evaluate_records(loaded: LoadedModel, documents: Sequence[Document], batch_size: int = 32) -> dict[str, float]:
    """Returns the metrics of a fine-tuned model on records with gold values, as `measure` describes."""
    records = encoded(loaded, documents)
    return measure(loaded.task, records, predict(loaded, records, batch_size))


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
