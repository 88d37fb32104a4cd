"""The base class of every config: frozen, typed, hashable, and closed to unknown fields."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import pydantic


class Schema(pydantic.BaseModel):
    """A small config that stands beside the code that reads it.

    Frozen and hashable, so an instance serves as a Flax module attribute and as a static jit argument. An unknown
    field is an error. Numbers must be finite: no hyperparameter of a run is legitimately NaN or infinite. A field of
    a group may be given by its dotted path: `{"rope.theta": 1e6}` changes it in the group `rope`.

    Attributes:
        moved: paths that fields had before, from this config, to those that they have now, also from this config;
            "a.b or c.b" where there are several.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), validate_default=True
    )

    moved: ClassVar[Mapping[str, str]] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _nested(cls, values: Any) -> Any:
        """Returns the values with dotted paths put in their groups; raises ValueError for a path of before."""
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
        """Returns the dotted path that a field of before has now; None: there was none of this path."""
        if path in cls.moved:
            return cls.moved[path]
        group, _, rest = path.partition(".")
        inner = cls.model_fields[group].annotation if group in cls.model_fields else None
        if isinstance(inner, type) and issubclass(inner, Schema) and (now := inner.moved_to(rest)):
            return " or ".join(f"{group}.{each}" for each in now.split(" or "))
        return None

    def with_fields(self, fields: Mapping[str, Any]) -> Self:
        """Returns a copy with other values, by dotted path; validated as a whole."""
        return self.model_validate({**dict(self), **fields})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Returns a copy as `with_fields`: pydantic's own would check neither the names nor the values."""
        copied = super().model_copy(deep=deep)
        return copied.with_fields(update) if update else copied

    def flat(self) -> dict[str, Any]:
        """Returns every value by its dotted path."""
        return flat(self.model_dump())


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested dicts as one, by dotted path."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {p: v for k, x in values.items() for p, v in flat(x, f"{prefix}.{k}" if prefix else k).items()}
