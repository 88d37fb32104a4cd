"""The task of a fine-tuned checkpoint of Hugging Face, in the fields of its config.json such as `id2label`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmjax.errors import DataError
from lmjax.objectives.base import ObjectiveConfig
from lmjax.objectives.classification import Classification, ClassificationConfig
from lmjax.objectives.question_answering import QuestionAnswering, QuestionAnsweringConfig
from lmjax.objectives.tagging import Tagging, TaggingConfig

Fields = Mapping[str, Any]
Tasks = Mapping[str, ObjectiveConfig]


def read_tasks(path: pathlib.Path, values: Fields, heads: Sequence[str]) -> Tasks:
    """Returns the settings of the objective that a checkpoint was fine-tuned on, by name; empty if it is not known.

    Args:
        path: of the config.json, for messages.
        values: what is in it.
        heads: of the model.

    Raises:
        DataError: the names of the labels are not those of the ids 0, 1, ..., or two are equal.
    """
    for head in heads:
        if head in _READ and (found := _READ[head](path, values)):
            return found
    return {}


def task_fields(tasks: Tasks) -> dict[str, Any]:
    """Returns the fields of a config.json that say what a model was fine-tuned on; none for one that was not."""
    return {key: x for name, settings in tasks.items() if name in _WRITE for key, x in _WRITE[name](settings).items()}


def _classifier(path: pathlib.Path, values: Fields) -> Tasks:
    """Returns what a classifier of rows was fine-tuned on."""
    if values.get("problem_type") in ("regression", "multi_label_classification"):
        return {}
    labels = _labels(path, values)
    # One output is a number, not a class.
    return {Classification.name: ClassificationConfig(labels=labels)} if len(labels) > 1 else {}


def _classification(settings: ClassificationConfig) -> dict[str, Any]:
    """Returns the fields of a classifier of single labels."""
    return _label_fields(settings.labels) | {"problem_type": "single_label_classification"} if settings.labels else {}


def _tagger(path: pathlib.Path, values: Fields) -> Tasks:
    """Returns what a classifier of tokens was fine-tuned on; the scheme of its labels is not known."""
    labels = _labels(path, values)
    return {Tagging.name: TaggingConfig(labels=labels)} if len(labels) > 1 else {}


def _tagging(settings: TaggingConfig) -> dict[str, Any]:
    """Returns the fields of a classifier of tokens."""
    return _label_fields(settings.labels) if settings.labels else {}


def _span(path: pathlib.Path, values: Fields) -> Tasks:
    """Returns question answering; whether the model knows questions without answer is not said in a config.json."""
    del path, values
    return {QuestionAnswering.name: QuestionAnsweringConfig()}


def _labels(path: pathlib.Path, values: Fields) -> tuple[str, ...]:
    """Returns the names of the labels in the order of the logits.

    Names that say nothing (LABEL_0, LABEL_1, ...), and those of a file without names, become the numbers 0, 1, ...
    """
    given = values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    numbers = [str(i) for i in range(len(given))]
    if not isinstance(given, dict) or set(given) != set(numbers):
        raise DataError(f"{path}: id2label={str(given)[:80]} does not name the ids 0 to {len(given) - 1}; mend it")
    names = tuple(str(given[number]) for number in numbers)
    if len(set(names)) < len(names):
        raise DataError(f"{path}: id2label={str(given)[:80]} gives two ids one name; mend it")
    return tuple(numbers) if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def _label_fields(labels: Sequence[str]) -> dict[str, Any]:
    """Returns the fields that name labels."""
    return {
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
    }


# What is read from a config.json for a head, and what is written to it for an objective.
_READ: dict[str, Callable[[pathlib.Path, Fields], Tasks]] = {
    "classifier": _classifier,
    "tagger": _tagger,
    "span": _span,
}
_WRITE: dict[str, Callable[[Any], dict[str, Any]]] = {
    Classification.name: _classification,
    Tagging.name: _tagging,
}
