"""Steering by the texts of two files: of `lmjax explain --method=steering` and of `lmjax generate`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from absl import flags

from lmjax.analysis.inside import cut_rows
from lmjax.analysis.steering import direction, steer
from lmjax.commands.texts import read_texts
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.phases import phase


def direction_of(
    loaded: LoadedModel, sides: Sequence[Sequence[str]], layer: int, tokens: str
) -> tuple[str, np.ndarray]:
    """Returns the name of the residual stream after a layer, and the direction from the second to the first texts.

    Args:
        loaded: the model.
        sides: the texts that the direction leads to, and those that it leads away from.
        layer: number of the layer.
        tokens: last or mean, as of `steering.direction`.
    """
    side = "encoder/" if loaded.config.family.paired else ""
    if tokens not in ("last", "mean"):
        raise FlagError(f"--tokens={tokens}: a direction is that of the last token of a text, or of the mean of all")
    with phase("computing the direction"):
        return f"{side}layer_{layer}", direction(loaded, *(cut_rows(loaded, of) for of in sides), layer, tokens=tokens)


def steering_sides(values: flags.FlagValues) -> list[list[str]]:
    """Returns the texts of --steer_towards and --steer_away; none if there is no steering.

    Raises:
        FlagError: flags of steering do not fit together.
        DataError: a file cannot be read.
    """
    names = ("steer_towards", "steer_away", "steer_layer")
    given = [name for name in names if values[name].value is not None]
    strength = values["steer_strength"].value
    if given and len(given) < len(names):
        missing = next(name for name in names if name not in given)
        raise FlagError(f"--{given[0]}={values[given[0]].value}: steering also needs --{missing}")
    if strength is not None and not given:
        raise FlagError(f"--steer_strength={strength}: give --steer_towards, --steer_away and --steer_layer too")
    if strength is not None and not math.isfinite(strength):
        raise FlagError(f"--steer_strength={strength}: give a finite number")
    return [read_texts(values[flag].value, flag) for flag in names[:2]] if given else []


def steered(values: flags.FlagValues, sides: Sequence[Sequence[str]], loaded: LoadedModel) -> LoadedModel:
    """Returns the model as the flags of steering change it; itself without them.

    Args:
        values: the flags.
        sides: as of `steering_sides`.
        loaded: the model.

    Raises:
        FlagError: there is no such layer.
    """
    if not sides:
        return loaded
    family, layer = loaded.config.family, values["steer_layer"].value
    count = loaded.config.side_layers(family.causal and not family.paired)
    if layer >= count:
        raise FlagError(f"--steer_layer={layer}: the model has {count} layers, from 0 to {count - 1}")
    name, vector = direction_of(loaded, sides, layer, "last")
    strength = 1.0 if values["steer_strength"].value is None else values["steer_strength"].value
    return steer(loaded, {name: np.float32(strength) * vector})
