"""The time that a step takes at least: the most of what its products, its memory and its links need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from lmjax.parallel.chips import Chip


class Load(NamedTuple):
    """What a step asks of one device.

    Attributes:
        flops: FLOPs of its products.
        moved: bytes to and from its main memory.
        sent: bytes that it sends to other devices, by the axes of the mesh along which.
    """

    flops: float
    moved: float
    sent: Mapping[tuple[str, ...], float]


class Bound(NamedTuple):
    """Seconds that a step takes at least, by what takes them; products, memory and links work at the same time."""

    products: float
    memory: float
    links: Mapping[tuple[str, ...], float]

    @property
    def seconds(self) -> float:
        """Returns the seconds of the slowest part."""
        return max(self.products, self.memory, *self.links.values(), 0.0)

    @property
    def by(self) -> str:
        """Returns the name of the slowest part."""
        parts = {"products": self.products, "memory": self.memory}
        parts |= {f"links of {'+'.join(axes)}": seconds for axes, seconds in self.links.items()}
        return max(parts, key=lambda name: parts[name])


def bound(load: Load, chip: Chip, mesh: jax.sharding.Mesh) -> Bound:
    """Returns the least time of a step on a chip.

    Along some axes of the mesh, a device sends over the links of all torus dimensions in which its group extends, in
    both directions.
    """
    links = {axes: sent / link_speed(chip, mesh, axes) for axes, sent in load.sent.items()}
    return Bound(load.flops / chip.flops, load.moved / chip.bandwidth, links)


def link_speed(chip: Chip, mesh: jax.sharding.Mesh, axes: tuple[str, ...]) -> float:
    """Returns the bytes/s that a device sends to the others of its group along these axes."""
    return chip.links * max(1, min(chip.dims, torus_sides(mesh, axes))) / chip.dims


def torus_sides(mesh: jax.sharding.Mesh, axes: tuple[str, ...]) -> int:
    """Returns the number of torus dimensions in which the devices of a group along these axes differ."""
    last = [mesh.axis_names.index(name) for name in axes]
    order = [i for i in range(mesh.devices.ndim) if i not in last] + last
    width = int(np.prod([mesh.devices.shape[i] for i in last]))
    group = mesh.devices.transpose(order).reshape(-1, width)[0]
    places = [tuple(getattr(device, "coords", ())) for device in group]
    return sum(len(set(column)) > 1 for column in zip(*places, strict=True))
