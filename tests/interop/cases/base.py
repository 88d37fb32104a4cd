"""What a case of the interop tests is."""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    """One model.

    Attributes:
        model: transformers' class.
        config: the arguments of its config class.
        counted: positions count the real tokens; off: they are places in the row, padding included.
        length: tokens of a row; a learned position table is as long.
        told: transformers is given the positions that count; off: it counts them itself, from other numbers than 0.
        left: one row begins with padding; off for what reads the first position, which is then nothing.
    """

    model: str
    config: dict[str, Any]
    counted: bool = True
    length: int = 12
    told: bool = True
    left: bool = True
