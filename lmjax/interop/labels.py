"""The names of a classifier's labels in a config.json of Hugging Face: `id2label` and `label2id`."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.errors import DataError
from lmjax.model.heads import HEADS


def read_labels(path: pathlib.Path, values: Mapping[str, Any], heads: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the labels in the order of the logits; empty if no head chooses one label of a row.

    Names that say nothing (LABEL_0, LABEL_1, ...), and those of a file without names, become the numbers 0, 1, ...

    Args:
        path: of the config.json, for messages.
        values: what is in it.
        heads: of the model.

    Raises:
        DataError: the names are not those of the ids 0, 1, ..., or two are equal.
    """
    if not any(output.axes == ("batch", "labels") for head in heads for output in HEADS[head].outputs):
        return ()
    if values.get("problem_type") in ("regression", "multi_label_classification"):
        return ()
    given = values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    numbers = [str(i) for i in range(len(given))]
    if not isinstance(given, dict) or set(given) != set(numbers):
        raise DataError(f"{path}: id2label={str(given)[:80]} does not name the ids 0 to {len(given) - 1}; mend it")
    names = tuple(str(given[number]) for number in numbers)
    if len(set(names)) < len(names):
        raise DataError(f"{path}: id2label={str(given)[:80]} gives two ids one name; mend it")
    if len(names) == 1:
        # One output is a number, not a class.
        return ()
    return tuple(numbers) if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def label_fields(labels: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of a config.json that name these labels; none for a model without."""
    if not labels:
        return {}
    return {
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
        "problem_type": "single_label_classification",
    }
