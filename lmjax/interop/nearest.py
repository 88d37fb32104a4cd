"""For a model that no family of Hugging Face can express: the family that needs fewest changes, and the changes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import pydantic

from lmjax.model.config import ModelConfig

# Of the fields that are compared, those that say together which layers see everything.
_TOGETHER = {"attention.global_every": ("attention.window", "attention.global_every", "attention.global_offset")}
# A change may bring another one with it, as another kind of positions brings its own numbers.
_ROUNDS = 4


class Change(NamedTuple):
    """A field of the model, by its path in ModelConfig, its value, and the one that the family needs."""

    path: str
    value: Any
    needed: Any

    @property
    def flag(self) -> str:
        """Returns what makes the change on a command line."""
        return f"--config.model.{self.path}={_text(self.needed)}"


def _text(value: Any) -> str:
    """Returns a value as `--config.` flags take it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def changes(config: ModelConfig, compare: Callable[[ModelConfig], tuple[set[str], ModelConfig] | None]) -> list[Change]:
    """Returns what has to change in a model for a family to express it; nothing: no change helps.

    Args:
        config: of the model.
        compare: from a model to the fields in which the family differs, by the names of ModelConfig, and the family's
            model that is nearest to it; None: the family cannot have it at all.
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
