"""Reads the text of `--grid`: `optimizer.learning_rate=1e-4,3e-4;seed=0:3` is a product of two fields.

Dimensions are separated by semicolons and values by commas. `0:3` are the integers 0, 1 and 2. Where values contain
commas, they are separated by bars: `objective=mlm|mlm,nsp`. `1e-4..1e-2` is a range from which a search chooses, and
`1e-4..1e-2:log` one of which it chooses the logarithm. Names may have the prefix `config.`. Imports no jax.
"""

from __future__ import annotations

import re

from lmjax.errors import FlagError
from lmjax.sweep.space import Between, Space, param, product

_RANGE = re.compile(r"(-?\d+):(-?\d+)")
_BETWEEN = re.compile(r"([^.,|]\S*?)\.\.(\S+?)(:log)?")


def parse_grid(text: str) -> Space:
    """Returns the space that a text describes.

    Raises:
        FlagError: the text has another form, or a field or a value is given twice.
    """
    dimensions: dict[str, Space] = {}
    for part in text.split(";"):
        name, equals, values = (each.strip() for each in part.partition("="))
        name = name.removeprefix("--").removeprefix("config.")
        if not equals or not name:
            raise FlagError(f"--grid={text}: {part.strip()!r} is not FIELD=VALUE,VALUE; dimensions are joined by ';'")
        if name in dimensions:
            raise FlagError(f"--grid={text}: {name} is given twice; give all its values once")
        try:
            dimensions[name] = param(name, _values(name, values))
        except FlagError as e:
            raise FlagError(f"--grid={text}: {e}") from e
    return product(*dimensions.values())


def _values(name: str, text: str) -> list[str | Between]:
    """Returns the values of one dimension as texts, or its range."""
    if found := _BETWEEN.fullmatch(text):
        low, high = (_number(name, text, each) for each in found.groups()[:2])
        return [Between(low, high, log=bool(found[3]))]
    if found := _RANGE.fullmatch(text):
        first, end = map(int, found.groups())
        if first >= end:
            raise FlagError(f"{name}={text}: holds no integer; FIRST:END are the integers from FIRST to END - 1")
        return [str(i) for i in range(first, end)]
    values = [each.strip() for each in text.split("|" if "|" in text else ",")]
    if not all(values):
        raise FlagError(f"{name}={text}: has an empty value; write none for an empty list or no value")
    return values


def _number(name: str, text: str, end: str) -> float:
    """Returns an end of a range as an integer or a float."""
    try:
        return int(end) if re.fullmatch(r"-?\d+", end) else float(end)
    except ValueError:
        raise FlagError(f"{name}={text}: {end!r} is no number; a range is LOW..HIGH or LOW..HIGH:log") from None
