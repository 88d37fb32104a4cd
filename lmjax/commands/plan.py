"""`lmjax plan`: what a run needs on devices that are not here, from its compiled training step."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import jax
from absl import flags

from lmjax.axes import MESH_AXES
from lmjax.commands.fits import sized_model
from lmjax.commands.table import aligned
from lmjax.commands.train import resolve_flags
from lmjax.config import Config, replace
from lmjax.errors import FlagError
from lmjax.model.parameters import count_parameters
from lmjax.parallel import pmap
from lmjax.parallel.chips import Chip, chip_of
from lmjax.parallel.collectives import sent_by_axes
from lmjax.parallel.cost import moved_by_source
from lmjax.parallel.hlo import Program
from lmjax.parallel.memory import readable
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.roofline import Bound, bound, link_speed
from lmjax.parallel.topology import topology_devices
from lmjax.phases import phase
from lmjax.runs.ahead import Ahead, check_planned, compile_ahead
from lmjax.runs.build import check_mesh
from lmjax.runs.decode_ahead import Decode, compile_decode
from lmjax.runs.meshes import Candidate, candidates, counts_of, least_sent

# The end of an operation's name that is printed, in characters.
_NAME = 90


def main(values: flags.FlagValues, overrides: Mapping[str, str]) -> Ahead:
    """Returns the compiled step, after printing what it needs."""
    topology = values["topology"].value
    if not topology:
        raise FlagError("--topology: name the devices, such as v5e:4x4 or cpu:8; --help has examples")
    # Before anything else uses the backend, because virtual devices of the CPU must be asked for before it starts.
    devices = topology_devices(topology)
    config = resolve_flags(values, overrides).config
    check_planned(config)
    mesh, tokens = values["mesh"].value, values["tokens"].value
    if tokens is not None and not math.isfinite(tokens):
        raise FlagError(f"--tokens={tokens}: give a number of tokens, such as 300e9")
    if mesh is not None and mesh != "auto":
        config = replace(config, {f"parallel.{axis}": size for axis, size in _sizes(mesh).items()})
    pmap.check(config.parallel)
    if mesh == "auto" and config.parallel.kind == "pmap":
        raise FlagError("--mesh=auto: replicas of --parallel=pmap have one layout; leave --mesh out")
    model = sized_model(config)
    config = replace(config, {"model.vocab_size": model.config.vocab_size})
    if mesh == "auto":
        config, ahead = _searched(config, model.heads, topology, devices, values["candidates"].value)
    else:
        check_mesh(config, _mesh(config, devices, mesh))
        ahead = _compiled(config, devices)
    print("\n".join(report(config, topology, ahead, tokens)))
    if values["sources"].value:
        print("\n" + "\n".join(sources(ahead, values["sources"].value)))
    if values["decode"].value:
        with phase("compiling the step that generates a token"):
            found = compile_decode(config, model.heads, values["decode"].value, devices)
        print("\n" + "\n".join(decode_report(found)))
    return ahead


def _mesh(config: Config, devices: list[jax.Device], flag: str | None) -> jax.sharding.Mesh:
    """Returns the mesh; an error names the flag that gave it."""
    try:
        return make_mesh(config.parallel, devices)
    except FlagError as e:
        raise FlagError(f"--mesh={flag}: {e}" if flag else str(e)) from e


def _compiled(config: Config, devices: list[jax.Device]) -> Ahead:
    """Returns the compiled step of a config."""
    mesh = make_mesh(config.parallel, devices)
    with phase(f"compiling the step for {len(devices)} {devices[0].device_kind}"):
        return compile_ahead(config, mesh)


def _searched(
    config: Config, heads: tuple[str, ...], topology: str, devices: list[jax.Device], most: int
) -> tuple[Config, Ahead]:
    """Returns the best of the most promising layouts, compiled, after printing how they rank."""
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        raise FlagError(f"--mesh=auto --topology={topology}: ranks by the figures of a chip; name a TPU slice")
    known = candidates(config, heads, devices, chip)
    made: list[tuple[float, Candidate, Ahead]] = []
    rows = [("layout", "estimate", "least time", "memory")]
    for each in known:
        if len(made) == most or len(rows) > 2 * most:
            break
        try:
            ahead = _compiled(each.config, devices)
        except FlagError as e:
            rows.append((each.name, f"{1e3 * each.seconds:.3g} ms", "does not fit", str(e).split(",")[0][-30:]))
            continue
        least = bound(ahead.load, chip, ahead.run.mesh).seconds
        made.append((least, each, ahead))
        times = (f"{1e3 * seconds:.3g} ms" for seconds in (each.seconds, least))
        rows.append((each.name, *times, readable(ahead.total)))
    if not made:
        raise FlagError(
            f"--mesh=auto: none of the {len(rows) - 1} most promising layouts fits {topology}, the last being "
            f"{rows[-1][0]}; raise --candidates, or take a larger --topology or a smaller --batch_size"
        )
    print("\n".join([f"{len(known)} layouts may fit; the most promising by estimate, compiled:", *aligned(rows), ""]))
    _, best, ahead = min(made, key=lambda found: found[0])
    return best.config, ahead


def _sizes(text: str) -> dict[str, int]:
    """Returns the sizes of the axes that --mesh names; those that it does not name are 1, and `data` takes the rest."""
    sizes = {axis: -1 if axis == "data" else 1 for axis in MESH_AXES}
    for part in text.split(","):
        found = re.fullmatch(r"(\w+)=(\d{1,6})", part)
        if not found or found.group(1) not in sizes or not int(found.group(2)):
            raise FlagError(
                f"--mesh={text}: {part!r} is no axis and size; write data=4,fsdp=4 ({', '.join(MESH_AXES)})"
            )
        sizes[found.group(1)] = int(found.group(2))
    return sizes


def report(config: Config, topology: str, ahead: Ahead, tokens: float | None) -> list[str]:
    """Returns the lines of the report.

    Args:
        config: the config of the run.
        topology: the name of the devices.
        ahead: its compiled step.
        tokens: tokens to train on; None: those of the config's steps.
    """
    mesh = ahead.run.mesh
    kind = mesh.devices.flat[0].device_kind
    chip = chip_of(kind)
    length = config.task.length
    lines = [
        f"devices      {topology}: {mesh.size} {kind}" + (f", {_figures(chip)}" if chip else ""),
        f"mesh         {' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items() if size > 1) or 'one device'}",
        f"step         {config.batch_size} rows of {length}, {ahead.tokens:,} tokens with padding, in "
        f"{config.accumulation} microbatch(es); remat {config.model.remat}, {config.model.dtype}; "
        f"compiled in {ahead.seconds:.0f} s ({ahead.cpu:.0f} s of processor)",
        "",
        *_memory(ahead, chip),
        "",
        *_times(config, ahead, chip),
    ]
    if chip is not None:
        lines += ["", *_budget(config, ahead, bound(ahead.load, chip, mesh), chip, tokens)]
    return lines


def sources(ahead: Ahead, most: int) -> list[str]:
    """Returns the lines about the parts of a step with the most memory traffic."""
    found = list(moved_by_source(Program.parse(ahead.text)).items())[:most]
    rows = [(name[-_NAME:], readable(int(size)), f"{size / ahead.load.moved:.1%}") for name, size in found]
    return aligned([("memory traffic by operation", "bytes", "share"), *rows])


def decode_report(found: Decode) -> list[str]:
    """Returns the lines about the step that generates a token."""
    chip = chip_of(found.mesh.devices.flat[0].device_kind)
    sizes = ", ".join(f"{name} {readable(size)}" for name, size in found.memory.items())
    lines = [
        f"generation   {found.rows} texts with {found.length} slots each on {found.mesh.size} device(s), "
        f"{sizes} on each; compiled in {found.seconds:.0f} s",
        f"             a token takes {found.load.flops / 1e9:.4g} GFLOP and {readable(int(found.load.moved))} of "
        "memory traffic on each",
    ]
    if chip is not None:
        least = bound(found.load, chip, found.mesh)
        speed = found.rows / least.seconds
        lines.append(f"             at most {speed:,.0f} tokens/s, by its {least.by}")
    return lines


def _figures(chip: Chip) -> str:
    return (
        f"each {chip.flops / 1e12:.0f} TFLOP/s in bfloat16, {chip.memory / 2**30:.0f} GiB at "
        f"{chip.bandwidth / 1e9:.0f} GB/s, links {chip.links / 1e9:.0f} GB/s ({chip.source})"
    )


def _memory(ahead: Ahead, chip: Chip | None) -> list[str]:
    """Returns the table of the memory of a device."""

    def row(name: str, size: int) -> tuple[str, ...]:
        share = f"{size / chip.memory:.1%}" if chip else ""
        return name, readable(size) if abs(size) >= 1000 else f"{size} bytes", share

    rows = [row(name, size) for name, size in ahead.memory.items() if size]
    off = ""
    # On a CPU, XLA's peak leaves out the arguments.
    if chip and ahead.peak:
        off = f"the compiler's own peak is {readable(ahead.peak)}, of which this is {ahead.total / ahead.peak:.1%}"
    head = ("memory of a device", "bytes", "of the chip" if chip else "")
    return [line.rstrip() for line in [*aligned([head, *rows, row("total", ahead.total)]), off] if line.strip()]


def _times(config: Config, ahead: Ahead, chip: Chip | None) -> list[str]:
    """Returns the table of what a device computes, moves and sends in a step, and the time of each."""
    load, mesh = ahead.load, ahead.run.mesh
    times = bound(load, chip, mesh) if chip else None

    def row(name: str, amount: str, seconds: float | None) -> tuple[str, ...]:
        return name, amount, "" if seconds is None else f"{1e3 * seconds:.3g} ms"

    needed = ahead.model_flops / mesh.size
    rows = [
        ("a step on a device", "amount", "least time" if chip else ""),
        row("products", f"{load.flops / 1e9:.4g} GFLOP", times and times.products),
        row("memory traffic", readable(int(load.moved)), times and times.memory),
    ]
    for (name, axes), sent in sent_by_axes(ahead.collectives).items():
        seconds = sent / link_speed(chip, mesh, axes) if chip else None
        rows.append(row(f"{name} over {'+'.join(axes)}", readable(int(sent)), seconds))
    computed = ahead.needed_flops / mesh.size
    lines = [
        *(line.rstrip() for line in aligned(rows)),
        f"products are {load.flops / needed:.3f} of the model's own {needed / 1e9:.4g} GFLOP, and "
        f"{load.flops / computed:.3f} of them with half of the pairs in causal order and with remat",
        f"memory traffic is {load.moved / ahead.least_moved:.3f} of the least, {readable(int(ahead.least_moved))}: "
        "operands and results of products, and the update",
    ]
    teacher = ahead.fixed.teacher and count_parameters(ahead.fixed.teacher.params)
    counts = counts_of(ahead.run.config, ahead.run.model.heads)._replace(teacher=teacher or 0)
    least = sum(least_sent(config, mesh.shape, counts).values())
    if least:
        sent = sum(load.sent.values())
        lines.append(f"what is sent is {sent / least:.3f} of the least, {readable(int(least))} by lmjax.runs.meshes")
    over = [each for each in ahead.collectives if "fsdp" in each.axes]
    if 2 * sum(each.sent for each in over if each.kind == "all-reduce") > sum(each.sent for each in over):
        lines.append("fsdp gathers by sums, which send twice the bytes: give one side of the torus to data")
    return lines


def _budget(config: Config, ahead: Ahead, least: Bound, chip: Chip, tokens: float | None) -> list[str]:
    """Returns the lines about the speed at most, and the time of the whole run."""
    devices = ahead.run.mesh.size
    speed = ahead.tokens / least.seconds
    mfu = ahead.model_flops / (least.seconds * devices * chip.flops)
    lines = [
        f"at most      {speed:,.0f} tokens/s, MFU {mfu:.1%}: a step takes at least {1e3 * least.seconds:.3g} ms, by "
        f"its {least.by}"
    ]
    if tokens is None and (config.minutes is not None or config.epochs is not None):
        return [*lines, "budget       the config has no number of steps; give --tokens"]
    steps = config.steps if tokens is None else tokens / ahead.tokens
    hours = steps * least.seconds / 3600
    return [
        *lines,
        f"budget       {steps:,.0f} steps, {steps * ahead.tokens:.3g} tokens: at least {hours / 24:.3g} days, "
        f"{hours * devices:,.4g} device-hours",
    ]
