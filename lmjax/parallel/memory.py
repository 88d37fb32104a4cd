"""How much memory a device and the host have, and a check whether arrays can fit there."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from lmjax.errors import FlagError

# Files with the memory limit of a control group, of version 2 and of version 1.
_LIMITS = ("memory.max", "memory.limit_in_bytes")


class Memory(NamedTuple):
    """Memory that a computation can use.

    Attributes:
        num_bytes: its size.
        name: its name in messages.
        shared: whether all local devices share it, as on a CPU, where it is the host's.
    """

    num_bytes: int
    name: str
    shared: bool


# For `held`: a device with memory of its own, whose size does not matter.
ONE_DEVICE = Memory(0, "", False)


def host_memory(root: str = "/") -> int:
    """Returns the bytes that this process may use: the machine's, or the lowest limit of its control groups.

    Args:
        root: the folder that holds `proc` and `sys`.
    """
    base = pathlib.Path(root)
    sizes = [int(line.split()[1]) * 1024 for line in _lines(base / "proc/meminfo") if line.startswith("MemTotal:")]
    if not sizes:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in _lines(base / "proc/self/cgroup"):
        _, controllers, place = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            hierarchy = base / "sys/fs/cgroup" / ("memory" if controllers else "")
            group = hierarchy / place.strip("/")
            # In a container this may be the host's path, of which only the top folder is visible.
            folders = [folder for folder in (group, *group.parents) if folder.is_relative_to(hierarchy)]
            found = [line for folder in folders for name in _LIMITS for line in _lines(folder / name)]
            sizes += [int(line) for line in found if line.strip().isdigit()]
    return min(sizes)


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def device_memory() -> Memory:
    """Returns the memory of one local device; on a CPU it is the host's, which all devices share."""
    device = jax.local_devices()[0]
    statistics = device.memory_stats() if device.platform != "cpu" else None
    if statistics and "bytes_limit" in statistics:
        return Memory(statistics["bytes_limit"], f"each {device.device_kind}", False)
    return Memory(host_memory(), "this machine", True)


def held(tree: Any, memory: Memory) -> int:
    """Returns the bytes that arrays take: of their shards on one device, or on all local devices if memory is shared.

    Args:
        tree: arrays, or shapes with shardings; one without a sharding is on one device.
        memory: the memory that holds them.
    """
    total = 0
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        copies = len(sharding.addressable_devices) if sharding is not None and memory.shared else 1
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        total += math.prod(shape) * (0 if key else leaf.dtype.itemsize) * copies
    return total


def whole(tree: Any) -> int:
    """Returns the bytes of arrays or shapes, however they are split over devices."""
    return held([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.tree.leaves(tree)], ONE_DEVICE)


def check_fits(subject: str, needs: Mapping[str, int], memory: Memory, remedy: str) -> None:
    """Raises FlagError if the least that is needed exceeds the memory.

    Args:
        subject: the flag or the command, for the message.
        needs: bytes by purpose.
        memory: the memory that is available.
        remedy: what the user can change.
    """
    total = sum(needs.values())
    if total > memory.num_bytes:
        parts = ", ".join(f"{name} {readable(size)}" for name, size in needs.items() if size)
        raise FlagError(
            f"{subject}: needs at least {readable(total)} ({parts}) and {memory.name} has "
            f"{readable(memory.num_bytes)}; {remedy}"
        )


def readable(num_bytes: int) -> str:
    """Returns a number of bytes as text, with three digits and a unit: 4.29 GB is 4.29 * 10**9 bytes."""
    for unit, size in (("EB", 10**18), ("PB", 10**15), ("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}" if num_bytes < 1000 * size else f"{num_bytes / size:.3e} {unit}"
    return f"{num_bytes} bytes"
