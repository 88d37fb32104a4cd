"""`lmjax evaluate --task=long_context`: synthetic tasks in long texts, by length and depth."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import jax
from absl import flags
from pydantic import ValidationError

from lmjax.commands.prompts import write_records
from lmjax.errors import FlagError
from lmjax.evaluation.long_context import (
    LONG,
    LongConfig,
    check_lengths,
    examples,
    loss_by_position,
    shares,
    written,
)
from lmjax.evaluation.tasks import Data
from lmjax.inference.loaded import LoadedModel
from lmjax.phases import phase

_FLAGS = ("lengths", "depths", "examples")


def long_config(values: flags.FlagValues, task: str) -> LongConfig:
    """Returns the suite that the flags say; raises FlagError for one that is impossible or for another task."""
    given = {name: values[name].value for name in _FLAGS if values[name].value not in (None, [])}
    if given and task != LONG:
        name, value = next(iter(given.items()))
        raise FlagError(f"--{name}={value}: is for --task={LONG}; give that too, or leave it out")
    try:
        return LongConfig(**given)
    except ValidationError as e:
        error = e.errors()[0]
        raise FlagError(f"--{error['loc'][0]}={error['input']}: {error['msg']}; give whole numbers above 0") from e


def long_results(
    values: flags.FlagValues, loaded: LoadedModel, data: Mapping[str, Data], config: LongConfig
) -> dict[str, dict[str, float]]:
    """Returns the share of right answers by depth for each task and length, and the loss by position.

    With --figures, writes a heat map of each task; with --predictions, every prompt with its answers.
    """
    check_lengths(loaded, config)
    results, lines = {}, []
    for name, found in data.items():
        mark = f"{name}, " if len(data) > 1 else ""
        asked = examples(config, found.records, lambda text: len(loaded.tokenizer.encode(text)))
        with phase(f"answering {len(asked):,} question(s) in {name}"):
            texts = written(loaded, asked)
        grids = shares(config, asked, texts)
        depths = [f"depth {i / max(config.depths - 1, 1):.0%}" for i in range(config.depths)]
        for task, grid in grids.items():
            for length, row in zip(config.lengths, grid, strict=True):
                results[f"{mark}{task}, {length}"] = dict(zip(depths, map(float, row), strict=True))
        if by_position := loss_by_position(loaded, found.records, max(config.lengths)):
            results[f"{mark}nats at token"] = by_position
        lines += [each._asdict() | {"set": name, "text": text} for each, text in zip(asked, texts, strict=True)]
        if values["figures"].value and not jax.process_index():
            _draw(grids, config, depths, pathlib.Path(values["figures"].value).expanduser(), name if mark else "")
    if values["predictions"].value:
        write_records(pathlib.Path(values["predictions"].value), lines)
    return results


def _draw(grids: Mapping, config: LongConfig, depths: list[str], folder: pathlib.Path, name: str) -> None:
    """Writes a heat map of each task as a PNG file."""
    from lmjax.analysis.heat import grid_map

    for task, grid in grids.items():
        figure = grid_map(grid.T, depths, [str(length) for length in config.lengths], f"{name} {task}".strip(), 1.0)
        figure.savefig(folder / f"{name}{'_' if name else ''}{task}.png", dpi=120)
