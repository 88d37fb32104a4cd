"""What accelerators can do, from the vendors' public figures: the one table that speeds and plans are computed from."""

from __future__ import annotations

from typing import NamedTuple

_GIB = 2**30


class Chip(NamedTuple):
    """The figures of one device, as jax counts devices.

    Attributes:
        flops: peak FLOP/s of dense bfloat16 products; a multiplication with an addition is two.
        memory: bytes of its main memory.
        bandwidth: bytes/s to and from its main memory.
        links: bytes/s that it sends over all its links to other chips together (half of a bidirectional figure).
        dims: dimensions of the torus that the links form; those of one dimension send 1/dims of `links`.
        source: where the figures are published.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float
    dims: int
    source: str


def _tpu(page: str) -> str:
    return f"https://docs.cloud.google.com/tpu/docs/{page}"


def _gpu(page: str) -> str:
    return f"https://www.nvidia.com/en-us/data-center/{page}"


_V4 = Chip(275e12, 32 * _GIB, 1228e9, 300e9, 3, _tpu("v4"))
_V5E = Chip(197e12, 16 * _GIB, 819e9, 200e9, 2, _tpu("v5e"))
_V5P = Chip(459e12, 96 * _GIB, 2765e9, 600e9, 3, _tpu("v5p"))
_V6E = Chip(918e12, 32 * _GIB, 1638e9, 400e9, 2, _tpu("v6e"))
# A device is one of the two cores of a chip, with half of the chip's figures.
_V7X = Chip(2307e12 / 2, 96 * _GIB, 7380e9 / 2, 600e9 / 2, 3, _tpu("tpu7x"))
# By the beginning of jax's name of the device; the longest that fits counts.
CHIPS: dict[str, Chip] = {
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _V7X,
    "NVIDIA A100": Chip(312e12, 80e9, 2039e9, 300e9, 1, _gpu("a100/")),
    "NVIDIA H100": Chip(989e12, 80e9, 3350e9, 450e9, 1, _gpu("h100/")),
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9, 1, _gpu("h200/")),
    "NVIDIA L4": Chip(121e12, 24e9, 300e9, 32e9, 1, _gpu("l4/")),
    "Tesla T4": Chip(65e12, 16e9, 320e9, 16e9, 1, _gpu("tesla-t4/")),
}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the figures of a device by jax's name of it, or None for one that is not in the table."""
    known = [name for name in CHIPS if device_kind.startswith(name)]
    return CHIPS[max(known, key=len)] if known else None
