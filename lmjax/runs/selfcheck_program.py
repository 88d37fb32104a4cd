"""Whether a compiled step divides its work over the devices, and sends only what the rules of its mesh imply."""

from __future__ import annotations

from typing import NamedTuple

import jax

from lmjax.config import Config
from lmjax.parallel.collectives import Collective
from lmjax.runs.ahead import load_of

# Collectives of fewer bytes are of counters, sums of losses and small parameters.
_LEAST = 4096
# All devices together may compute this many times what one device does: some products are on all devices of an axis,
# and attention over split rows computes its scores again in the backward pass.
_MOST_WORK = 1.5
# What each axis may send beside sums, which every axis has. Where a row's predictions are not at all of its positions,
# the sequence axis gathers their states.
_IMPLIED = {
    "fsdp": ("all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    "tensor": ("reduce-scatter",),
    "expert": ("all-gather", "reduce-scatter", "all-to-all"),
    "sequence": ("all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
}
_OF_ATTENTION = {"ring": "collective-permute", "all_to_all": "all-to-all"}


class Work(NamedTuple):
    """What a compiled step computes and sends.

    Attributes:
        flops: of the products of all devices together.
        sent: its collectives.
    """

    flops: float
    sent: tuple[Collective, ...]


def work(text: str, mesh: jax.sharding.Mesh) -> Work:
    """Returns what a compiled step computes and sends."""
    load, sent = load_of(text, mesh)
    return Work(load.flops * mesh.size, tuple(sent))


def odd_work(one: Work, other: Work, config: Config) -> str:
    """Returns what a step does that the rules of its mesh do not imply, or "".

    Args:
        one: the step on one device.
        other: the step on the mesh.
        config: of the run on the mesh.
    """
    if other.flops > _MOST_WORK * one.flops:
        return f"its devices compute {other.flops / one.flops:.2f} times the products of one device"
    sequence = _OF_ATTENTION[config.parallel.sequence_attention]
    for each in other.sent:
        allowed = {"all-reduce"}
        for axis in each.axes:
            allowed |= {*_IMPLIED.get(axis, ())}
        if each.kind not in allowed and each.sent / each.times >= _LEAST and not config.model.moe.num_experts:
            return (
                f"its program has {each.kind} over {'+'.join(each.axes)}, which no rule implies ({each.source[-60:]})"
            )
    kinds = {(each.kind, axis) for each in other.sent for axis in each.axes}
    if config.parallel.sequence > 1 and (sequence, "sequence") not in kinds:
        return f"its program has no {sequence} over sequence, so that attention is not split as the config says"
    if config.parallel.fsdp > 1 and ("all-gather", "fsdp") not in kinds:
        return "its program gathers nothing over fsdp, so that parameters are not split"
    return ""
