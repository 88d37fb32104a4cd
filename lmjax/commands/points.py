"""Resolves points of a sweep as `lmjax train` resolves its flags, so that a point means what the flags mean there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from lmjax.commands import train_flags
from lmjax.commands.parsing import parse
from lmjax.commands.train import resolve_flags
from lmjax.config import Config
from lmjax.errors import FlagError
from lmjax.schema import shown
from lmjax.sweep.space import Point, point_text

# The flags of `lmjax train` that say what is trained, as against where, how it is shown, and by which processes.
FLAGS = (*train_flags.SAME, "config", "preset")


def given(values: flags.FlagValues, overrides: Mapping[str, str]) -> Point:
    """Returns the flags and fields that a command line gives to every run."""
    return {name: values[name].value for name in FLAGS if values[name].present} | dict(overrides)


def canonical(point: Point, where: str) -> dict[str, Any]:
    """Returns a point with one name for each field: the dotted path of a field for the flags that only set one.

    Raises:
        FlagError: the point gives a field twice, under two names.
    """
    named: dict[str, Any] = {}
    for key, value in point.items():
        plain = key.removeprefix("--").removeprefix("config.")
        name = train_flags.FIELDS.get({"lr": "learning_rate"}.get(plain, plain), plain)
        if name in named:
            raise FlagError(f"{where}: {key} and --config.{name} are the same field; give it once")
        named[name] = value
    return named


def arguments(point: Point) -> list[str]:
    """Returns the arguments of `lmjax train` for a point."""
    known, made = train_flags.define(), []
    for key, value in point.items():
        name = f"--{key}" if key in FLAGS else f"--config.{key}"
        repeated = key in FLAGS and isinstance(known[key], flags.MultiFlag) and not isinstance(value, str)
        made += [f"{name}={shown(each)}" for each in (value if repeated else [value])]
    return made


def resolve_points(points: Sequence[Point], base: Point) -> tuple[list[Config], list[list[str]]]:
    """Returns the config of every point, and the arguments of `lmjax train` for it.

    Args:
        points: what each run is given; the names are those of `canonical`.
        base: what all runs are given.

    Raises:
        FlagError: a point, or what all are given, cannot be trained; the message names the point.
    """
    told = [arguments({**base, **point}) for point in points]
    return [_resolved(argv, point) for argv, point in zip(told, points, strict=True)], told


def _resolved(argv: Sequence[str], point: Point) -> Config:
    values = train_flags.define()
    try:
        overrides = parse(values, argv, train_flags.SAME, command="train")
        return resolve_flags(values, overrides)[0]
    except FlagError as e:
        raise FlagError(f"the run with {point_text(point)}: {e}") from e
