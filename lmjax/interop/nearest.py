"""The changes of a config that are needed so that a given Hugging Face family can express the model."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import pydantic

from lmjax.model.config import ModelConfig

# Fields that must change together: these three decide which layers have global attention.
_TOGETHER = {"attention.global_every": ("attention.window", "attention.global_every", "attention.global_offset")}
# Rounds of changes: a change may require another one, such as the parameters of a new position scheme.
_ROUNDS = 4


class Change(NamedTuple):
    """The path of a field of ModelConfig, its value, and the value that the family needs."""

    path: str
    value: Any
    needed: Any

    @property
    def flag(self) -> str:
        """Returns the command-line flag that makes the change."""
        return f"--config.model.{self.path}={_text(self.needed)}"


def _text(value: Any) -> str:
    """Returns a value in the syntax of `--config.` flags."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def changes(config: ModelConfig, compare: Callable[[ModelConfig], tuple[set[str], ModelConfig] | None]) -> list[Change]:
    """Returns the changes of a model that are needed for a family to express it; empty: no change helps.

    Args:
        config: of the model.
        compare: a function from a model to the names of the ModelConfig fields in which the family differs, and the
            family's nearest model; it returns None if the family cannot express the model in any way.
    """
    now = config
    for _ in range(_ROUNDS):
        found = compare(now)
        if found is None:
            return []
        names, theirs = found
        if not names:
            return _between(config, now)
        fields = {field for name in names for field in _TOGETHER.get(name, (name,))}
        update = {field: operator.attrgetter(field)(theirs) for field in fields}
        try:
            now = now.model_copy(update=update)
        except pydantic.ValidationError:
            return []
    return []


def _between(one: Any, other: Any, prefix: str = "") -> list[Change]:
    """Returns the fields in which two configs differ."""
    found = []
    for name in type(one).model_fields:
        a, b = getattr(one, name), getattr(other, name)
        if a == b:
            continue
        both = isinstance(a, pydantic.BaseModel) and isinstance(b, pydantic.BaseModel)
        found += _between(a, b, f"{prefix}{name}.") if both else [Change(f"{prefix}{name}", a, b)]
    return found
