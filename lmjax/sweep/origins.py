"""Runs that begin from other runs: what they begin from is told by the fields of those, not by their places."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.config import from_json
from lmjax.errors import UserError
from lmjax.paths import expanded
from lmjax.runs.workdir import CONFIG
from lmjax.schema import shown
from lmjax.sweep.arms import ORIGIN, RunResult, differing
from lmjax.sweep.ledger import Ledger
from lmjax.training.metrics import METRICS

_FIELD = ORIGIN.removesuffix(".")


def with_origins(runs: Sequence[RunResult]) -> list[RunResult]:
    """Returns runs whose fields are those of `origin_fields`."""
    return [
        dataclasses.replace(run, fields=fields)
        for run, fields in zip(runs, origin_fields([run.fields for run in runs]), strict=True)
    ]


def origin_fields(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns fields of runs with `init_from.FIELD` in place of `init_from`, for those in which the origins differ.

    So runs that begin from runs of different seeds are one arm, and its interval holds the noise of both trainings.
    The fields are those of the sweep that trained all origins, or else of their configs. What is no run of lmjax, such
    as a folder from elsewhere, or cannot be read any more, keeps its place.
    """
    places = list(dict.fromkeys(shown(fields[_FIELD]) for fields in runs if _FIELD in fields))
    origins = _fields_of([place for place in places if _is_run(place)])
    return [_replaced(fields, origins) for fields in runs] if len(origins) > 1 else list(runs)


def _replaced(fields: Mapping[str, Any], origins: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the fields of a run with those of its origin at the place of `init_from`."""
    own = origins.get(shown(fields.get(_FIELD)))
    if own is None:
        return dict(fields)
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= {f"{ORIGIN}{key}": each for key, each in own.items()} if name == _FIELD else {name: value}
    return found


def _is_run(place: str) -> bool:
    return all((expanded(place) / name).is_file() for name in (CONFIG, METRICS))


def _fields_of(places: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Returns the fields in which runs differ, by their places; empty: a run cannot be read, or two are the same."""
    workdirs = [expanded(place).absolute() for place in places]
    try:
        fields = _swept(workdirs) or differing([from_json(workdir / CONFIG) for workdir in workdirs])
    except UserError:
        return {}
    distinct = {tuple(map(shown, each.items())) for each in fields}
    return dict(zip(places, fields, strict=True)) if len(distinct) == len(places) else {}


def _swept(workdirs: Sequence[pathlib.Path]) -> list[Mapping[str, Any]]:
    """Returns the fields that one sweep gave runs; empty: they are not all of one sweep."""
    folders = {workdir.parent.parent for workdir in workdirs}
    if len(folders) != 1:
        return []
    known = {target.name: target.fields for target in Ledger(folders.pop()).read()[1]}
    return [known[workdir.name] for workdir in workdirs] if {w.name for w in workdirs} <= known.keys() else []
