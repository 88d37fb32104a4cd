"""The collectives of a compiled program: what each device sends, and along which axes of the mesh."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.parallel.hlo import Instruction, Program

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,]*\}(?:,\{[\d,]*\})*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, *device_ids=\((?:\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d,]+))\))?"
    r" *\{([^}]*)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{(\{\d+,\d+\}(?:,\{\d+,\d+\})*)\}")
# XLA on a TPU writes a reduce-scatter as a fusion of this name around an all-reduce.
_SCATTERED = "all-reduce-scatter"


class Collective(NamedTuple):
    """A collective of the program.

    Attributes:
        kind: one of KINDS.
        axes: the axes of the mesh that its devices differ in.
        devices: the number of devices of a group.
        sent: bytes that a device sends in one execution of the program, by a ring.
        times: how often an execution of the program runs it.
        source: the name of the operation that it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    sent: float
    times: int
    source: str


def collectives(program: Program, axes: Mapping[str, int]) -> list[Collective]:
    """Returns the collectives of a program that some device sends anything in.

    A collective that a TPU runs beside other work stands in several computations, which begin it, go on with it and
    end it; it counts once.

    Args:
        program: the compiled program.
        axes: the sizes of the mesh's axes by name, in their order.
    """
    found, chains = [], set()
    for use in program.uses:
        scattered = use.computation.name.startswith(_SCATTERED)
        for instruction in use.computation.instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            if "chain_id=" in instruction.attributes:
                channel = instruction.attribute("channel_id")
                if channel in chains:
                    continue
                chains.add(channel)
            groups = _groups(instruction, axes)
            devices = groups.shape[1]
            given = sum(shape.num_bytes for shape in use.computation.shapes(instruction))
            kind = "reduce-scatter" if scattered and kind == "all-reduce" else kind
            sent = given * _share(kind, devices) * use.times
            if sent:
                name = re.search(r'op_name="([^"]*)"', instruction.attributes)
                names = _varying(groups, axes)
                found.append(Collective(kind, names, devices, sent, use.times, name.group(1) if name else ""))
    return found


def sent_by_axes(found: Sequence[Collective]) -> dict[tuple[str, tuple[str, ...]], float]:
    """Returns the bytes that a device sends, by kind of collective and axes of the mesh, the largest first."""
    total: collections.Counter[tuple[str, tuple[str, ...]]] = collections.Counter()
    for each in found:
        total[each.kind, each.axes] += each.sent
    return dict(total.most_common())


def counted(found: Sequence[Collective], least: int = 0) -> dict[str, int]:
    """Returns how many collectives of at least `least` bytes there are, by kind and axes such as `all-gather fsdp`."""
    large = (x for x in found if x.sent / x.times >= least)
    return dict(sorted(collections.Counter(f"{x.kind} {'+'.join(x.axes)}" for x in large).items()))


def _share(kind: str, devices: int) -> float:
    """Returns the bytes that a device sends for each byte that it gives to a collective, with a ring of devices."""
    return (
        {
            "all-gather": devices - 1,
            "reduce-scatter": (devices - 1) / devices,
            "all-reduce": 2 * (devices - 1) / devices,
            "all-to-all": (devices - 1) / devices,
            "collective-permute": 1,
            "collective-broadcast": 1,
        }[kind]
        if devices > 1
        else 0.0
    )


def _groups(instruction: Instruction, axes: Mapping[str, int]) -> np.ndarray:
    """Returns the groups of devices of a collective, `[groups, devices]`; a device is its position in the mesh."""
    text = instruction.attributes
    if found := _PAIRS.search(text):
        pairs = np.array([[int(x) for x in pair.split(",")] for pair in re.findall(r"\{(\d+,\d+)\}", found.group(1))])
        # A device that sends to itself sends nothing.
        moving = pairs[pairs[:, 0] != pairs[:, 1]]
        return moving if len(moving) else pairs[:, :1]
    if found := _MESH.search(text):
        return _of_mesh(*found.groups())
    if found := _IOTA.search(text):
        shape, dims, order = (None if x is None else [int(n) for n in x.split(",")] for x in found.groups())
        return _iota(dims, order).reshape(shape)
    if found := _LISTED.search(text):
        return np.array(
            [[int(x) for x in group.split(",") if x] for group in re.findall(r"\{([\d,]*)\}", found.group(1))]
        )
    # No groups are all devices together; groups that are written in another way would be counted wrongly.
    if "replica_groups=" in text and "replica_groups={}" not in text:
        raise ValueError(f"a collective has groups in a form that is not known: {text[:300]}")
    return np.arange(math.prod(axes.values()))[None]


def _iota(dims: Sequence[int], order: Sequence[int] | None) -> np.ndarray:
    """Returns the numbers from 0 in an array of these dimensions, transposed, flat."""
    numbers = np.arange(math.prod(dims)).reshape(dims)
    return (numbers if order is None else numbers.transpose(order)).ravel()


def _of_mesh(sizes: str, dims: str | None, order: str | None, ids: str | None, names: str) -> np.ndarray:
    """Returns the groups of `mesh['a'=2,'b'=4] {'b'}`: devices that differ in the named axes alone.

    A part of an axis is written `'b':(2)2`: after the first 2 positions' worth of its devices, the next 2.
    """
    known = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)]
    count = math.prod(size for _, size in known)
    devices = np.arange(count)
    if dims is not None:
        devices = _iota([int(x) for x in dims.split(",")], [int(x) for x in order.split(",")] if order else None)
    elif ids is not None:
        devices = np.array([int(x) for x in ids.split(",")])
    parts: dict[str, tuple[int, int]] = {}
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", names):
        whole = dict(known)[name]
        parts[name] = (int(before), int(size)) if size else (1, whole)
    shape, inside, position = [], [], 0
    for name, size in known:
        before, own = parts.get(name, (size, 1))
        shape += [before, own, size // before // own]
        inside += [position + 1]
        position += 3
    outside = [i for i in range(position) if i not in inside]
    width = math.prod(shape[i] for i in inside)
    return devices.reshape(shape).transpose(*outside, *inside).reshape(-1, width)


def _varying(groups: np.ndarray, axes: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the axes of the mesh in which the devices of a group differ."""
    places = np.stack(np.unravel_index(groups, tuple(axes.values())))
    differ = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(name for name, different in zip(axes, differ, strict=True) if different)
