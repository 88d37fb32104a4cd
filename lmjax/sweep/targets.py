"""Named runs of a sweep: each is a point with the whole config that it resolves to."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.config import Config, changed
from lmjax.errors import FlagError
from lmjax.paths import file_safe
from lmjax.runs.workdir import INERT
from lmjax.schema import shown
from lmjax.sweep.space import Point, point_text

# The most characters of a name before its digest, and of a value in it.
_LONGEST, _VALUE = 80, 24


@dataclasses.dataclass(frozen=True)
class Target:
    """One run of a sweep.

    Attributes:
        name: of the run and of its folder.
        point: the fields and flags that it is given, besides those that all runs are given.
        fields: those of them that differ between the runs.
        arguments: the arguments of `lmjax train` that train the same run.
        config: its config.
    """

    name: str
    point: Point
    fields: Mapping[str, Any]
    arguments: tuple[str, ...]
    config: Config


def same_run(one: Config, other: Config) -> bool:
    """Returns whether two configs describe the same run: they differ at most in fields that change no number."""
    return one == other or not differences(one, other)


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the fields in which two configs differ as runs, each with both values."""
    return {path: both for path, both in changed(one, other).items() if path not in INERT}


def name_targets(
    points: Sequence[Point],
    configs: Sequence[Config],
    arguments: Sequence[Sequence[str]],
    known: Mapping[str, Config] | None = None,
) -> tuple[Target, ...]:
    """Returns the points as targets with short, unique names made of the fields that differ.

    Args:
        points: what each run is given, besides what all are given.
        configs: the config of each.
        arguments: the arguments of `lmjax train` of each.
        known: the configs of runs that exist already, by name; a run with an equal config keeps that name.

    Raises:
        FlagError: two points describe the same run.
    """
    first: dict[Config, Point] = {}
    for point, config in zip(points, configs, strict=True):
        if config in first:
            raise FlagError(
                f"the points {point_text(first[config])} and {point_text(point)} are the same run; remove one of them"
            )
        first[config] = point
    # A field's value has the type that it has in the config; what is no field is a flag that sets several.
    values = [config.flat() for config in configs]
    typed = [
        {key: flat.get(key, value) for key, value in point.items()} for flat, point in zip(values, points, strict=True)
    ]
    differing = _differing(typed)
    fields = [{key: point[key] for key in differing if key in point} for point in typed]
    names = _names(fields)
    taken = {}
    for i, config in enumerate(configs):
        taken[i] = next((name for name, old in (known or {}).items() if same_run(old, config)), None)
    kept = set(taken.values())
    targets = []
    for i, (point, config) in enumerate(zip(points, configs, strict=True)):
        # A new run may have been given the name of an existing one that had fewer fields.
        name = taken[i] or (names[i] if names[i] not in kept else f"{names[i]}-{_digest(point)}")
        targets.append(Target(name, point, fields[i], tuple(arguments[i]), config))
    return tuple(targets)


def _differing(points: Sequence[Point]) -> list[str]:
    """Returns the fields that have different values in the points, in their order; of a single point, all of them."""
    keys = list(dict.fromkeys(key for point in points for key in point))
    if len(points) == 1:
        return keys
    return [key for key in keys if len({shown(point[key]) if key in point else None for point in points}) > 1]


def _names(fields: Sequence[Point]) -> list[str]:
    """Returns a name for each run's differing fields; names that would be cut or equal end with a digest."""
    keys = list(dict.fromkeys(key for each in fields for key in each))
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}
    plain = ["-".join(f"{short[key]}={_value(value)}" for key, value in each.items()) or "run" for each in fields]
    names = []
    for name, each in zip(plain, fields, strict=True):
        cut = len(name) > _LONGEST or any(len(shown(value)) > _VALUE for value in each.values())
        clash = sum(other.lower() == name.lower() for other in plain) > 1
        names.append(f"{name[:_LONGEST]}-{_digest(each)}" if cut or clash else name)
    return names


def _value(value: Any) -> str:
    """Returns a value as a part of a name: of a path, only its last part."""
    text = shown(value)
    text = pathlib.PurePath(text).name if "/" in text else text
    return file_safe(text)[:_VALUE] or "empty"


def _digest(point: Point) -> str:
    """Returns six hex digits that identify a point, whatever the version of lmjax."""
    text = "\n".join(sorted(f"{key}={shown(value)}" for key, value in point.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:6]
