"""The task of a fine-tuned checkpoint of Hugging Face, in the fields of its config.json such as `id2label`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.errors import DataError, FlagError
from lmjax.model.heads.rows import ClassifierHead
from lmjax.objectives.base import ObjectiveConfig
from lmjax.objectives.classification import Classification, ClassificationConfig
from lmjax.objectives.embedding import Embedding, EmbeddingConfig
from lmjax.objectives.multiple_choice import MultipleChoice, MultipleChoiceConfig
from lmjax.objectives.question_answering import QuestionAnswering, QuestionAnsweringConfig
from lmjax.objectives.regression import SCORE, Regression, RegressionConfig
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


def in_own_units(tasks: Tasks, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the parameters of a model whose outputs are those of a checkpoint of transformers.

    A model of regression predicts standardised numbers. Their means and deviations become part of its last layer.

    Raises:
        FlagError: the last layer has no bias, which the means need.
    """
    if Regression.name not in tasks:
        return params
    settings = tasks[Regression.name]
    means, deviations = (np.array(x, np.float32) for x in (settings.means, settings.deviations))
    head = dict(params[ClassifierHead.subtree])
    last = dict(head["classifier"])
    if "bias" not in last and means.any():
        zeros = ",".join("0" for _ in means)
        raise FlagError(
            f"--to: transformers gives this head no bias, and its predictions have the means {means.tolist()}; train "
            f"with --config.task.{Regression.name}.means={zeros}, or subtract the means from the data"
        )
    last["kernel"] = last["kernel"] * deviations[None].astype(last["kernel"].dtype)
    if "bias" in last:
        last["bias"] = (last["bias"] * deviations + means).astype(last["bias"].dtype)
    return {**params, ClassifierHead.subtree: head | {"classifier": last}}


def _classifier(path: pathlib.Path, values: Fields) -> Tasks:
    """Returns what a classifier of rows was fine-tuned on."""
    labels = _labels(path, values)
    # As in transformers, a single output without a type of problem is a number.
    problem = values.get("problem_type") or _KINDS["single" if len(labels) > 1 else ""]
    if problem == _KINDS[""]:
        names = tuple(f"{SCORE}_{label}" if label.isdigit() else label for label in labels)
        targets = names if len(names) > 1 else (SCORE,)
        units = {"means": (0.0,) * len(targets), "deviations": (1.0,) * len(targets)}
        return {Regression.name: RegressionConfig(targets=targets, **units)}
    kind = next((kind for kind, name in _KINDS.items() if name == problem), "single")
    if kind == "single" and len(labels) < 2:
        return {}
    return {Classification.name: ClassificationConfig(labels=labels, kind=kind)}


def _classification(settings: ClassificationConfig) -> dict[str, Any]:
    """Returns the fields of a classifier."""
    return _label_fields(settings.labels) | {"problem_type": _KINDS[settings.kind]} if settings.labels else {}


def _regression(settings: RegressionConfig) -> dict[str, Any]:
    """Returns the fields of a model of regression."""
    return _label_fields(settings.targets) | {"problem_type": _KINDS[""]}


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


# The type of problem in a config.json by the kind of classification; "" is regression. Ordered classes come in again as
# single labels, in their order.
_KINDS = {
    "single": "single_label_classification",
    "multiple": "multi_label_classification",
    "ordered": "single_label_classification",
    # Both call it alike.
    "": Regression.name,
}
# What is read from a config.json for a head, and what is written to it for an objective.
_READ: dict[str, Callable[[pathlib.Path, Fields], Tasks]] = {
    "classifier": _classifier,
    "tagger": _tagger,
    "span": _span,
    **dict.fromkeys(MultipleChoice.heads, lambda path, values: {MultipleChoice.name: MultipleChoiceConfig()}),
    **dict.fromkeys(Embedding.heads, lambda path, values: {Embedding.name: EmbeddingConfig()}),
}
_WRITE: dict[str, Callable[[Any], dict[str, Any]]] = {
    Classification.name: _classification,
    Tagging.name: _tagging,
    Regression.name: _regression,
}
