"""The fields of a case of the interop tests."""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    """One model.

    Attributes:
        model: transformers' class.
        config: the arguments of its config class.
        counted: whether positions count only real tokens; off: they are columns of the row, padding included.
        length: tokens of a row, and of a learned position table.
        told: whether transformers gets these positions; off: it computes them itself, from another start than 0.
        left: whether one row begins with padding; off for models that read the first position, which is then padding.
    """

    model: str
    config: dict[str, Any]
    counted: bool = True
    length: int = 12
    told: bool = True
    left: bool = True
