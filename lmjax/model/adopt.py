"""Which parameters of one model another one begins with, across families, depths and vocabularies.

A decoder becomes an encoder by losing its causal mask (BehnamGhader et al. 2024, arXiv:2404.05961, section 2), and both
sides of an encoder-decoder, whose cross-attention then begins as the self-attention of its layer (Zhang et al. 2025,
arXiv:2504.06225, section 3). A model also gives one side of an encoder-decoder, and some of its layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from lmjax.errors import FlagError
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import (
    BACKBONE,
    BIAS_TABLES,
    SHARED,
    UNROLLED,
    Names,
    layer_of,
)
from lmjax.model.traits import FAMILIES
from lmjax.schema import Schema

# The modules of a layer whose names begin with the first word start as those that begin with the second one.
_CROSS, _SELF = "cross_attention", "attention"


class InitConfig(Schema):
    """How a model of another depth or vocabulary begins with the parameters of `init_from`."""

    layers: tuple[int, ...] = Field(
        (),
        description="layers of init_from's model with which this model's layers begin, from 0 and in order, such as "
        "0,2,4; one may stand twice; empty: each layer with that of its own number",
    )
    decoder_layers: tuple[int, ...] = Field(
        (), description="the same for the decoder of an encoder-decoder; empty: as layers"
    )
    vocabulary: Literal["same", "mean", "pieces"] = Field(
        "same",
        description="same: the tokens have the ids of init_from's model; mean and pieces: rows are matched by the "
        "tokens' texts, and a new token begins as the mean of the table, or as the mean of the rows of its pieces",
    )


def in_family(config: ModelConfig, architecture: str) -> ModelConfig:
    """Returns the config of a model turned into another family: the same, except for what that family cannot have.

    An encoder-decoder turned into an encoder or a decoder is this side of it.

    Raises:
        FlagError: a field does not go with that family.
    """
    old, new = config.family, FAMILIES[architecture]
    fields: dict[str, Any] = {"architecture": architecture}
    if old.paired and not new.paired:
        fields |= {
            "num_layers": config.side_layers(new.causal),
            "num_decoder_layers": None,
            "positions": config.side_positions(new.causal),
            "decoder_positions": None,
            "cross_positions": "none",
        }
    if not new.token_types:
        fields["embedding.types"] = 0
    if new.causal and not old.causal:
        fields |= {"head.transform": False, "head.classifier": "tanh", "head.pooling": "first"}
    try:
        return config.with_fields(fields)
    except ValueError as e:
        raise FlagError(f"--architecture={architecture}: the model of --init_from is {old.label}: {e}") from e


def check_layers(layers: Sequence[int], count: int, there: int, field: str, size: str) -> tuple[int, ...]:
    """Returns the source layer of each of `count` layers.

    Args:
        layers: the source layers that the config names; empty: none.
        count: layers of a stack of this model.
        there: layers of the stack that it begins with.
        field: the dotted path of the field with the layers, for messages.
        size: that of the field with the number of layers.

    Raises:
        FlagError: there is no such layer, or the numbers of layers differ.
    """
    if not layers and count == there:
        return tuple(range(count))
    spread = ",".join(str(round(i * (there - 1) / max(count - 1, 1))) for i in range(count))
    if not layers:
        raise FlagError(
            f"--config.{size}={count}: init_from's model has {there} layers; say with which of them these begin, such "
            f"as --config.{field}={spread}"
        )
    if wrong := [layer for layer in layers if not 0 <= layer < there]:
        raise FlagError(f"--config.{field}: there is no layer {wrong[0]}; init_from's model has 0 to {there - 1}")
    if len(layers) != count:
        raise FlagError(
            f"--config.{field} names {len(layers)} layers, and --config.{size}={count}; give --config.{size}="
            f"{len(layers)}, or {count} layers such as {spread}"
        )
    return tuple(layers)


def source_layers(target: ModelConfig, source: ModelConfig, init: InitConfig) -> dict[str, tuple[int, ...]]:
    """Returns the source layer of each layer, by the side of the target: "encoder" or "decoder".

    Raises:
        FlagError: as of `check_layers`.
    """
    found = {}
    for side in target.family.sides:
        second = target.family.paired and side.causal
        fields = ("init.decoder_layers", "model.num_decoder_layers") if second else ("init.layers", "model.num_layers")
        chosen = (init.decoder_layers if second else ()) or init.layers
        counts = (target.side_layers(side.causal), source.side_layers(side.causal))
        found[_side(side.causal)] = check_layers(chosen, *counts, *fields)
    return found


def _side(causal: bool) -> str:
    return "decoder" if causal else "encoder"


def origins(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    target: ModelConfig,
    source: ModelConfig,
    layers: Mapping[str, Sequence[int]],
) -> dict[str, str]:
    """Returns by path of a parameter the path of the one that it begins as; those that begin at random are left out.

    Args:
        ours: the parameters of the unrolled target by path.
        theirs: those of the unrolled source.
        target: the config of the target.
        source: that of the source.
        layers: what `source_layers` returns.
    """
    found = {}
    for path in ours:
        names = tuple(path.split("/"))
        places = (names,) if names[0] != BACKBONE else _places(names, target, source, layers)
        if (origin := next((p for p in map("/".join, places) if p in theirs), None)) is not None:
            found[path] = origin
    return found


def _places(
    names: Names, target: ModelConfig, source: ModelConfig, layers: Mapping[str, Sequence[int]]
) -> tuple[Names, ...]:
    """Returns the paths at which a parameter of the backbone may stand in the source, the first choice first."""
    paired = target.family.paired
    side = names[1] if paired else _side(target.family.causal)
    there = side if source.family.paired else _side(source.family.causal)
    if BIAS_TABLES & set(names) and side != there:
        # The buckets of a causal table are distances in one direction, those of another table in both.
        return ()
    layer = layer_of(names)
    if layer is not None and SHARED not in names:
        at = len(layer.stack)
        names = (*names[:at], f"{UNROLLED}{layers[side][layer.number]}", *names[at + 1 :])
    where = (BACKBONE, side) if source.family.paired else (BACKBONE,)
    path = (*where, *names[2 if paired else 1 :])
    alike = tuple(_SELF + name.removeprefix(_CROSS) if name.startswith(_CROSS) else name for name in path)
    return (path, alike)
