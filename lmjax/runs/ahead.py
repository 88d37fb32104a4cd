"""Compiles the training step of a config for devices that need not exist, and reads from it what the step needs."""

from __future__ import annotations

import math
import pathlib
import re
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from lmjax.config import Config, replace
from lmjax.errors import FlagError
from lmjax.model.flops import forward_flops
from lmjax.objectives.registry import objective_types
from lmjax.parallel import collectives, cost
from lmjax.parallel.collectives import Collective
from lmjax.parallel.hlo import Program
from lmjax.parallel.memory import ONE_DEVICE, held, readable
from lmjax.parallel.mesh import batch_sharding, batch_shards
from lmjax.parallel.roofline import Load
from lmjax.runs.build import Run, build, hyperparameters
from lmjax.runs.fit import jitted_step, layout
from lmjax.runs.fixed_ahead import abstract_fixed, with_references
from lmjax.training.fixed import Fixed
from lmjax.training.state import TrainState, state_maker

# Documents of the text that stands in for a run's data.
_DOCUMENTS = 400
# How the compiler says what a program needs and what there is.
_EXHAUSTED = re.compile(
    r"\(([\d.]+[KMGT])\) exceeds available \S+ \(([\d.]+[KMGT])\)|Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) hbm",
    re.IGNORECASE,
)


class Ahead(NamedTuple):
    """A compiled training step and what it needs on each device.

    Attributes:
        run: the run, on text that stands in for its data.
        text: the program that the compiler made.
        seconds: how long it took to trace and to compile.
        cpu: seconds of all processors together that this took.
        memory: bytes on one device by what they are for.
        peak: bytes on one device that the compiler itself says the step needs; 0 if it does not say it.
        load: what a step computes, moves and sends.
        collectives: what it sends, one by one.
        model_flops: model FLOPs of one step on all devices, those of attention for all pairs.
        needed_flops: those that a step must compute: half of the pairs in causal order, and layers that are computed
            again.
        least_moved: bytes that one device must read and write at least, as `cost.least_bytes` and `_updated` say.
        tokens: positions of a batch, padding included.
        state: shapes, dtypes and shardings of the state.
        fixed: those of an adapter's base and of a teacher.
    """

    run: Run
    text: str
    seconds: float
    cpu: float
    memory: dict[str, int]
    peak: int
    load: Load
    collectives: list[Collective]
    model_flops: float
    needed_flops: float
    least_moved: float
    tokens: int
    state: TrainState
    fixed: Fixed

    @property
    def total(self) -> int:
        """Returns the bytes that the step needs on one device."""
        return sum(self.memory.values())


def check_planned(config: Config) -> None:
    """Raises FlagError for a run whose step needs more than its config says."""
    if config.teacher.recorded:
        raise FlagError(
            f"--config.teacher.place={config.teacher.place}: a plan does not read recorded predictions; name the "
            "teacher itself, or plan without one: the predictions are a few numbers beside each token"
        )


def compile_ahead(config: Config, mesh: jax.sharding.Mesh) -> Ahead:
    """Returns the compiled step of the last stage of a run.

    The shapes of a batch follow from the config, so that a short text stands in for running text and pairs; records,
    whose columns say what is in them, are read from the run's own data.

    Args:
        config: the config, with the size of the vocabulary.
        mesh: the devices, which need not exist.

    Raises:
        FlagError: the step does not fit the memory of the devices.
    """
    with tempfile.TemporaryDirectory(prefix="lmjax-plan-") as folder:
        # Replicas of pmap compute and hold what those of a mesh do that splits the batch alone.
        planned = replace(stand_in(config, pathlib.Path(folder)), {"parallel.kind": "mesh"})
        run = build(planned, pathlib.Path(folder) / "run", mesh)
        stage = with_references(run.stages[-1])
        batch = {name: _placed(x, batch_sharding(mesh, np.shape(x))) for name, x in stage.local_batch().items()}
        flops = [run.flops_per_step(stage, computed=computed) for computed in (False, True)]
        fixed = abstract_fixed(run, config.tokenizer.path)
        if fixed.teacher is not None:
            shapes, predictions = run.shapes(stage)
            flops[1] += forward_flops(fixed.teacher.model, shapes, predictions, causal=True)
    # Numbers are made before the mesh is in use, because its devices cannot hold any.
    hparams = hyperparameters(run.config)
    _, abstract = state_maker(run.model, run.config.optimizer, hparams, 0, mesh)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    numbers = jax.tree.map(lambda x: _placed(x, replicated), hparams)
    began, worked = time.perf_counter(), time.process_time()
    with layout(run):
        lowered = jitted_step(run, stage, abstract).trace(abstract, batch, numbers, fixed).lower()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as e:
            raise too_large(e, run, abstract) from e
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    text, analysis = compiled.as_text(), compiled.memory_analysis()
    causal = run.config.model.family.causal and not run.config.model.family.paired
    load, sent = load_of(text, mesh, causal=causal)
    width = 2 if run.config.model.dtype == "bfloat16" else 4
    return Ahead(
        run=run,
        text=text,
        seconds=seconds,
        cpu=cpu,
        memory=_memory(abstract, fixed, analysis),
        peak=analysis.peak_memory_in_bytes,
        load=load,
        collectives=sent,
        model_flops=flops[0],
        needed_flops=flops[1],
        least_moved=cost.least_bytes(Program.parse(text), width) + _updated(abstract, width),
        tokens=sum(math.prod(x.shape) for name, x in batch.items() if name.endswith("segment_ids")),
        state=abstract,
        fixed=fixed,
    )


def load_of(text: str, mesh: jax.sharding.Mesh, *, causal: bool = False) -> tuple[Load, list[Collective]]:
    """Returns what a compiled program asks of each device, and its collectives one by one.

    Args:
        text: the program.
        mesh: its devices.
        causal: whether attention kernels skip blocks that causal order masks.
    """
    program = Program.parse(text)
    sent = collectives.collectives(program, mesh.shape)
    by_axes = {axes: sum(x.sent for x in sent if x.axes == axes) for axes in {x.axes for x in sent}}
    return Load(cost.flops(program, causal=causal), cost.moved_bytes(program), by_axes), sent


def _updated(state: TrainState, width: int) -> float:
    """Returns the bytes of the state that an update reads and writes, and of the gradients that it reads.

    Args:
        state: of the run.
        width: bytes of a number of a gradient.
    """
    kept = held((state.params, state.opt_state, state.average), ONE_DEVICE)
    gradients = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state.params))
    return 2 * kept + width * gradients


def stand_in(config: Config, folder: pathlib.Path, words: int = 4) -> Config:
    """Returns the config with a short text, written to `folder`, in place of its data; records stay.

    Args:
        config: the config.
        folder: for the text.
        words: of each document, beside a few others.
    """
    types = objective_types(config.task.objective)
    fields: dict[str, Any] = {"data.cache_dir": str(folder / "cache"), "data.unpad": False}
    # An adapter without a base is no config; where only shapes are read, the base is not.
    fields |= {} if config.adapter.kind != "none" else {"init_from": ""}
    if any(o.columns for o in types):
        return replace(config, {"data.unpad": False})
    path = folder / ("text.tsv" if types[0].wants_pairs else "text.txt")
    documents = [" ".join(["king"] * words) + f" {number}. It goes on to {number}." for number in range(_DOCUMENTS)]
    lines = ["source\ttarget", *(f"{x}\t{x}" for x in documents)] if types[0].wants_pairs else documents
    path.write_text(("\n" if types[0].wants_pairs else "\n\n").join(lines) + "\n")
    fields |= {
        "data.train": str(path), "data.mixture": (), "data.weights": (), "data.eval": (), "data.held_out": 0.2,
        "data.split": "hash", "data.subset": None, "data.documents": "auto", "data.workers": 0,
        "tokenizer.kind": "char", "tokenizer.byte_fallback": False, "tokenizer.path": "",
    }  # fmt: skip
    return replace(config, fields)


def too_large(error: Exception, run: Run, state: TrainState) -> Exception:
    """Returns the error of a step that the compiler refused because it does not fit, or the compiler's own error."""
    found = re.search(
        r"(?:\((\S+?)\) exceeds available \S+ \((\S+?)\)|Used (\S+) of (\S+) hbm)", str(error), re.IGNORECASE
    )
    if not found:
        return error
    needed, there = ({"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[x[-1]] * float(x[:-1])
                     for x in found.groups() if x)  # fmt: skip
    held_now = held((state.params, state.opt_state, state.average), ONE_DEVICE)
    config, mesh = run.config, run.mesh
    remedy = []
    if mesh.shape["fsdp"] * mesh.shape["tensor"] < mesh.size:
        remedy.append("more devices of --mesh on fsdp or tensor, which divide parameters and optimizer")
    if mesh.shape["sequence"] < mesh.size:
        remedy.append("more devices of --mesh on sequence, which divides activations by position")
    if config.model.remat != "full":
        remedy.append("--config.model.remat=full")
    if config.batch_size // config.accumulation > batch_shards(mesh):
        remedy.append(f"more microbatches (--config.accumulation, now {config.accumulation})")
    remedy.append("a smaller --batch_size or a larger --topology")
    return FlagError(
        f"lmjax plan: the step needs {readable(int(needed))} on each device, {readable(int(needed - there))} more than "
        f"the {readable(int(there))} that a program can use there; parameters and optimizer take "
        f"{readable(held_now)}. Change: {', or '.join(remedy)}"
    )


def _placed(x: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding)


def _memory(state: TrainState, fixed: Fixed, analysis: Any) -> dict[str, int]:
    """Returns the bytes of a step on one device, by what they are for.

    The gradients exist at the same time as the activations only in part, so what the compiler reserves for both is
    divided by the size of the gradients in float32.
    """
    params = held(state.params, ONE_DEVICE)
    optimizer = held((state.opt_state, state.average), ONE_DEVICE)
    base, teacher = held(fixed.base, ONE_DEVICE), held(fixed.teacher, ONE_DEVICE)
    reserved = analysis.temp_size_in_bytes
    gradients = min(reserved, sum(held(jax.ShapeDtypeStruct(x.shape, np.float32, sharding=x.sharding), ONE_DEVICE)
                                  for x in jax.tree.leaves(state.params)))  # fmt: skip
    return {
        "parameters": params,
        "optimizer": optimizer,
        "the adapter's base": base,
        "teacher": teacher,
        "batch, counters and padding": analysis.argument_size_in_bytes - params - optimizer - base - teacher,
        "gradients": gradients,
        "activations and temporaries": reserved - gradients,
        "results that replace no argument": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
    }
