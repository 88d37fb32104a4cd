"""What the settings of objectives learn from the training data, such as the names of labels, and its JSON files."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from lmjax.config import Config
from lmjax.data.store import Store
from lmjax.errors import DataError
from lmjax.interop.shards import read_json
from lmjax.objectives.base import Objective
from lmjax.objectives.registry import OBJECTIVES
from lmjax.strict_json import write_json


def learn(config: Config, stores: Sequence[Store]) -> Config:
    """Returns the config with what its objectives learn from the training data, and the model that follows from it."""
    return _with_settings(config, lambda objective, own: objective.learn(own, stores))


def recall(config: Config, workdir: pathlib.Path) -> Config:
    """Returns the config with what a run has learned, read from the JSON files in its workdir.

    Raises:
        DataError: a file cannot be read.
    """

    def filled(objective: type[Objective], own: Any) -> Any:
        if not objective.learned:
            return own
        files = {field: workdir / f"{field}.json" for field in objective.learned if not getattr(own, field)}
        for path in files.values():
            if not path.is_file():
                raise DataError(f"{path}: is missing; copy it back, or give the training command again")
        values = {field: read_json(path).get(field) for field, path in files.items()}
        try:
            return own.with_fields(values)
        except ValidationError as e:
            raise DataError(f"{files[str(e.errors()[0]['loc'][0])]}: {e.errors()[0]['msg']}; copy it again") from e

    return _with_settings(config, filled)


def keep(config: Config, workdir: pathlib.Path) -> None:
    """Writes each learned field to a JSON file in the workdir."""
    for field, value in learned(config).items():
        write_json(workdir / f"{field}.json", {field: value})


def learned(config: Config) -> dict[str, Any]:
    """Returns the learned fields of all objectives by name."""
    return {field: getattr(own, field) for objective, own in _settings(config) for field in objective.learned}


def _settings(config: Config) -> Iterator[tuple[type[Objective], Any]]:
    for name in config.task.objective:
        yield OBJECTIVES[name], getattr(config.task, name)


def _with_settings(config: Config, change: Callable[[type[Objective], Any], Any]) -> Config:
    """Returns the config with other settings of its objectives, and the model's fields that follow from them."""
    settings, fields = {}, {}
    for objective, own in _settings(config):
        if (changed := change(objective, own)) is not own:
            settings[objective.name] = changed
            fields |= objective.model_fields(changed)
    if not settings:
        return config
    return config.with_fields({"task": config.task.with_fields(settings), "model": config.model.with_fields(fields)})
