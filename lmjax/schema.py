"""The base class of every config: frozen, typed, hashable, and closed to unknown fields."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import pydantic


class Schema(pydantic.BaseModel):
    """A config or a group of fields, defined in the file of the code that reads it.

    It is frozen and hashable, so an instance can be a Flax module attribute and a static argument of jit. An unknown
    field is an error. Numbers must be finite, because no hyperparameter may be NaN or infinite. A field of a group may
    be given by its dotted path: `{"rope.theta": 1e6}` changes `theta` in the group `rope`.

    Attributes:
        moved: former dotted paths of fields, and their present paths, both relative to this config; "a.b or c.b" if
            there are several present paths.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), validate_default=True
    )

    moved: ClassVar[Mapping[str, str]] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _nested(cls, values: Any) -> Any:
        """Returns the values with dotted paths put into their groups; raises ValueError for a former path."""
        if not isinstance(values, Mapping):
            return values
        for path in values:
            if path in cls.moved:
                raise ValueError(f"{path} is now {cls.moved[path]}")
        placed = {name: value for name, value in values.items() if "." not in name}
        for path, value in values.items():
            group, dot, rest = path.partition(".")
            if dot:
                placed[group] = {**dict(placed.get(group, {})), rest: value}
        return placed

    @classmethod
    def moved_to(cls, path: str) -> str | None:
        """Returns the present dotted path of a field that had the path `path` before; None: no field had it."""
        if path in cls.moved:
            return cls.moved[path]
        group, _, rest = path.partition(".")
        inner = cls.model_fields[group].annotation if group in cls.model_fields else None
        if isinstance(inner, type) and issubclass(inner, Schema) and (now := inner.moved_to(rest)):
            return " or ".join(f"{group}.{each}" for each in now.split(" or "))
        return None

    def with_fields(self, fields: Mapping[str, Any]) -> Self:
        """Returns a copy with the values in `fields`, by dotted path; the whole copy is validated."""
        return self.model_validate({**dict(self), **fields})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Returns a copy as `with_fields` does; pydantic's `model_copy` checks neither names nor values."""
        copied = super().model_copy(deep=deep)
        return copied.with_fields(update) if update else copied

    def flat(self) -> dict[str, Any]:
        """Returns every value by its dotted path."""
        return flat(self.model_dump())


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested dicts as one dict by dotted path; `prefix` is the path of `values`."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {p: v for k, x in values.items() for p, v in flat(x, f"{prefix}.{k}" if prefix else k).items()}


def shown(value: Any) -> str:
    """Returns a value of a field as a flag would give it."""
    if isinstance(value, tuple | list):
        return ",".join(map(shown, value)) or "none"
    if isinstance(value, pydantic.BaseModel):
        # A data set: its flag has the form NAME=PATH.
        return "=".join(map(str, value.model_dump().values()))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)
