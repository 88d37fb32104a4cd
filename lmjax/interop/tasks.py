"""The task of a fine-tuned checkpoint of Hugging Face, in the fields of its config.json such as `id2label`.

What these fields cannot say, such as whether a question may have no answer, is in a field of lmjax's own:
`"lmjax": {"tasks": {NAME: SETTINGS}, "length": TOKENS}`. Other programs ignore it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pydantic

from lmjax.errors import DataError, FlagError
from lmjax.model.heads.rows import ClassifierHead
from lmjax.objectives import registry
from lmjax.objectives.base import Objective, ObjectiveConfig
from lmjax.objectives.classification import Classification, ClassificationConfig
from lmjax.objectives.embedding import Embedding, EmbeddingConfig
from lmjax.objectives.multiple_choice import MultipleChoice, MultipleChoiceConfig
from lmjax.objectives.question_answering import QuestionAnswering, QuestionAnsweringConfig
from lmjax.objectives.records import RecordTask
from lmjax.objectives.registry import OBJECTIVES
from lmjax.objectives.regression import SCORE, Regression, RegressionConfig
from lmjax.objectives.tagging import Tagging, TaggingConfig

Fields = Mapping[str, Any]
Tasks = Mapping[str, ObjectiveConfig]
# The field of a config.json that only lmjax reads.
FIELD = "lmjax"


def read_tasks(path: pathlib.Path, values: Fields, heads: Sequence[str]) -> Tasks:
    """Returns the settings of the objective that a checkpoint was fine-tuned on, by name; empty if it is not known.

    Args:
        path: of the config.json, for messages.
        values: what is in it.
        heads: of the model.

    Raises:
        DataError: the names of the labels are not those of the ids 0, 1, ..., or two are equal; or lmjax's own field
            has settings that cannot be.
    """
    found = next((tasks for head in heads if head in _READ and (tasks := _READ[head](path, values))), {})
    own = _own(path, values).get("tasks", {})
    if not isinstance(own, dict):
        raise _damaged(path, f"tasks={str(own)[:40]!r} is not an object")
    for name, fields in own.items():
        # A folder whose class was changed has another head.
        if name in OBJECTIVES and set(OBJECTIVES[name].heads) <= set(heads) and (name in found or not found):
            found = {**found, name: _merged(path, name, found.get(name), fields)}
    return found


def read_length(path: pathlib.Path, values: Fields) -> int | None:
    """Returns the most tokens in a row that a model was fine-tuned on; None: not known.

    Raises:
        DataError: it is no such number.
    """
    length = _own(path, values).get("length")
    if length is not None and (type(length) is not int or length < 1):
        raise _damaged(path, f"length={str(length)[:40]!r} is not a number of tokens")
    return length


def task_fields(tasks: Tasks, length: int | None) -> dict[str, Any]:
    """Returns the fields of a config.json that say what a model was fine-tuned on; none for one that was not.

    Args:
        tasks: settings of its objectives by name.
        length: the most tokens in a row; None: not known.
    """
    tasks = {name: settings for name, settings in tasks.items() if _is_kept(OBJECTIVES[name])}
    fields = {key: x for name, settings in tasks.items() if name in _WRITE for key, x in _WRITE[name](settings).items()}
    own: dict[str, Any] = {}
    for name, settings in tasks.items():
        # These fields say what was learned too, and the parameters contain the units of regression.
        said = OBJECTIVES[name].learned if name in _WRITE else ()
        own[name] = settings.model_dump(
            mode="json", exclude_defaults=True, exclude={*ObjectiveConfig.model_fields, *said}
        )
    return fields | ({FIELD: {"tasks": own, "length": length}} if tasks else {})


def _is_kept(objective: type[Objective]) -> bool:
    """Returns whether a checkpoint says that a model was trained on an objective: its use depends on it."""
    return issubclass(objective, RecordTask) or objective.unmasks


def shown_labels(path: pathlib.Path, values: Fields, heads: Sequence[str]) -> dict[str, str]:
    """Returns what transformers calls the labels without names: LABEL_0 for 0; empty if they have names.

    Args:
        path: as for `read_tasks`.
        values: likewise.
        heads: likewise.
    """
    if not any(head in _LABELLED for head in heads) or (names := _names(path, values)) != _nameless(len(names)):
        return {}
    return {str(i): name for i, name in enumerate(names)}


def _own(path: pathlib.Path, values: Fields) -> Fields:
    """Returns lmjax's own field."""
    own = values.get(FIELD)
    if own is not None and not isinstance(own, dict):
        raise _damaged(path, f"{str(own)[:40]!r} is not an object")
    return own or {}


def _damaged(path: pathlib.Path, problem: str) -> DataError:
    return DataError(f"{path}: {FIELD}: {problem}; correct it, or remove the field to read the model without it")


def _merged(path: pathlib.Path, name: str, known: ObjectiveConfig | None, fields: Any) -> ObjectiveConfig:
    """Returns the settings that other fields say, with those of lmjax's own field."""
    if not isinstance(fields, dict):
        raise _damaged(path, f"tasks.{name}={str(fields)[:40]!r} is not an object")
    said = {} if known is None else {field: getattr(known, field) for field in known.model_fields_set}
    try:
        return registry.settings(OBJECTIVES[name]).model_validate(said | fields)
    except pydantic.ValidationError as e:
        first = e.errors()[0]
        field = ".".join(map(str, ("tasks", name, *first["loc"])))
        raise _damaged(path, f"{field}: {first['msg'].removeprefix('Value error, ')}") from e


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

    Names that say nothing (LABEL_0, LABEL_1, ...), and those of a file without names, become the numbers 0, 1, ..., as
    data name them. Pipelines show them as `shown_labels`.
    """
    names = _names(path, values)
    return tuple(map(str, range(len(names)))) if names == _nameless(len(names)) else names


def _nameless(count: int) -> tuple[str, ...]:
    """Returns the names that transformers gives to labels without names."""
    return tuple(f"LABEL_{i}" for i in range(count))


def _names(path: pathlib.Path, values: Fields) -> tuple[str, ...]:
    """Returns the names of the labels in a config.json, in the order of the logits."""
    given = values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    numbers = [str(i) for i in range(len(given))]
    if not isinstance(given, dict) or set(given) != set(numbers):
        raise DataError(f"{path}: id2label={str(given)[:80]} does not name the ids 0 to {len(given) - 1}; mend it")
    names = tuple(str(given[number]) for number in numbers)
    if len(set(names)) < len(names):
        raise DataError(f"{path}: id2label={str(given)[:80]} gives two ids one name; mend it")
    return names


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
# The heads whose outputs are labels with names.
_LABELLED = ("classifier", "tagger")
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
