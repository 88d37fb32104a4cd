"""Devices that need not exist: those of a TPU slice by its name, or CPU devices of this process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator

import jax

from lmjax.errors import FlagError

# A number of CPU devices, or the name of a chip and the sides of a slice.
_CPU = re.compile(r"cpu:(\d{1,4})")
_TPU = re.compile(r"(v4|v5e|v5p|v6e|tpu7x):(\d{1,3}(?:x\d{1,3}){0,2})")
_FLAT = ("v5e", "v6e")
_EXAMPLES = "give a TPU slice such as v5e:4x4, v6e:16x16 or v5p:8x8x8, or cpu:8"


def topology_devices(name: str) -> list[jax.Device]:
    """Returns the devices of a topology, in its order.

    Args:
        name: `CHIP:SIDExSIDE` of a TPU slice, or `cpu:NUMBER`.

    Raises:
        FlagError: there is no such topology, or libtpu is not installed.
    """
    flag = f"--topology={name}"
    # Several processes on one machine may compile for a TPU at the same time; none of them has a TPU to lock.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    if cpu := _CPU.fullmatch(name):
        return _cpu_devices(flag, int(cpu.group(1)))
    found = _TPU.fullmatch(name)
    if not found:
        raise FlagError(f"{flag}: {_EXAMPLES}")
    kind, sides = found.group(1), [int(n) for n in found.group(2).split("x")]
    if importlib.util.find_spec("libtpu") is None:
        raise FlagError(f"{flag}: compiling for a TPU needs libtpu; pip install 'lmjax[tpu]', or give --topology=cpu:8")
    wanted = 2 if kind in _FLAT else 3
    if len(sides) != wanted:
        example = "4x4" if wanted == 2 else "4x4x4"
        raise FlagError(f"{flag}: a slice of {kind} has {wanted} sides; write {kind}:{example}")
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}
    if max(sides) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
        name = f"{kind}:1x1x1"
    from jax.experimental import topologies

    try:
        with _silent():
            jax.devices()
            described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as e:
        reason = str(e).splitlines()[0][:200]
        raise FlagError(f"{flag}: libtpu knows no such slice ({reason}); {_EXAMPLES}") from e
    return list(described.devices)


def _cpu_devices(flag: str, count: int) -> list[jax.Device]:
    """Returns CPU devices of this process, which all share its cores."""
    with contextlib.suppress(RuntimeError):
        # Possible only before jax has made its devices.
        jax.config.update("jax_num_cpu_devices", max(1, count))
    with _silent():
        devices = jax.devices("cpu")
    if not 0 < count <= len(devices):
        raise FlagError(f"{flag}: this process has {len(devices)} CPU devices; give a number from 1 to that")
    return devices[:count]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hides what libtpu writes to the standard error about a TPU that is not there."""
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)
