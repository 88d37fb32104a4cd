"""Checks that a run computes the same however it is laid out: microbatches, packing, meshes, replicas, remat, scan.

The gradient of one batch and three training steps are compared with those of one device, parameter by parameter, in
float32 and without dropout, whose masks depend on the layout.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from lmjax.adapters.model import make_model
from lmjax.axes import MESH_AXES
from lmjax.config import Config, replace
from lmjax.errors import FlagError
from lmjax.model.transformer import stack_layers, unstack_layers
from lmjax.parallel import pmap
from lmjax.parallel.mesh import make_mesh, to_device
from lmjax.runs.ahead import stand_in
from lmjax.runs.build import Run, build, check_mesh, hyperparameters
from lmjax.runs.fit import jitted_step, layout
from lmjax.runs.selfcheck_program import Work, odd_work, work
from lmjax.runs.selfcheck_texts import differing_texts
from lmjax.runs.trained import trained_model
from lmjax.training.fixed import NOTHING_FIXED
from lmjax.training.state import state_maker
from lmjax.training.step import loss_and_gradients, make_train_step

PyTree = Any
Batch = dict[str, np.ndarray]

STEPS = 3
# Differences are relative to the largest element of a parameter, or to this part of that of all parameters: some
# gradients, such as that of the bias of keys, are 0 but for rounding.
TOLERANCE, _FLOOR = 1e-5, 1e-2
GENERATION = "generation, cached and not"
# With it an update is almost linear in the gradient. AdamW's own epsilon would make a large update of a rounding error.
_EPSILON = 1e-2


class Variant(NamedTuple):
    """Another layout of a run.

    Attributes:
        name: its name in the report.
        fields: fields of the config.
        splits: whether it draws other random numbers, because it computes parts of a batch one by one.
        segments: whether each segment of a packed row is a row of its own.
    """

    name: str
    fields: Mapping[str, Any] = {}
    splits: bool = False
    segments: bool = False


class Measured(NamedTuple):
    """What a layout computes.

    Attributes:
        losses: of each step.
        gradient: of the first batch, by path of the parameter, in the form of unrolled layers.
        params: after each step, in the same form.
        work: what the compiled step computes and sends; None with pmap, and without steps.
    """

    losses: tuple[float, ...]
    gradient: dict[str, np.ndarray]
    params: tuple[dict[str, np.ndarray], ...]
    work: Work | None = None


class Found(NamedTuple):
    """How far a layout is from one device.

    Attributes:
        variant: its name.
        skipped: why it was not compared, or "".
        loss: the largest relative difference of a loss.
        gradient: that of the gradient.
        params: that of the parameters after the steps.
        where: the first parameter that differs by more than the tolerance, and its step, or what else is wrong, or "".
    """

    variant: str
    skipped: str = ""
    loss: float = 0.0
    gradient: float = 0.0
    params: float = 0.0
    where: str = ""

    @property
    def same(self) -> bool:
        """Returns whether nothing differs by more than the tolerance."""
        return not self.where and self.loss <= TOLERANCE


def prepared(config: Config, rows: int) -> Config:
    """Returns the config in the form in which layouts must agree: float32, no dropout, `rows` rows, one device."""
    fields: dict[str, Any] = {f"model.dropout.{name}": 0.0 for name in config.model.dropout.by_name()}
    fields |= {"model.dtype": "float32", "model.param_dtype": "float32", "model.remat": "none", "task.r_drop": 0.0}
    fields |= {f"parallel.{axis}": 1 for axis in MESH_AXES}
    fields |= {"parallel.kind": "mesh", "batch_size": rows, "accumulation": 1, "minutes": None, "epochs": None}
    fields |= {"stages.until": (), "stages.batch_size": (), "stages.length": (), "optimizer.warmup_steps": 0}
    fields |= {"optimizer.warmup_share": None}
    if "epsilon" in type(config.optimizer.rule).model_fields:
        fields[f"optimizer.{config.optimizer.name}.epsilon"] = _EPSILON
    return replace(config, fields)


def variants(config: Config, devices: int) -> Iterator[Variant]:
    """Yields the layouts that are compared with one device; `config` is prepared."""
    for count in (2, 4):
        yield Variant(f"{count} microbatches", {"accumulation": count}, splits=True)
    yield Variant("padded instead of packed", segments=True)
    for sizes in (
        {"data": devices},
        {"fsdp": devices},
        {"tensor": 2, "data": devices // 2},
        {"data": devices // 4, "fsdp": 2, "tensor": 2},
        {"sequence": devices},
        {"fsdp": 2, "sequence": devices // 4, "tensor": 2},
    ):
        name = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        yield Variant(f"mesh {name}", {f"parallel.{axis}": size for axis, size in sizes.items()})
    fields = {"parallel.data": devices // 2, "parallel.sequence": 2, "parallel.sequence_attention": "all_to_all"}
    yield Variant(f"mesh data {devices // 2} x sequence 2, all-to-all", fields)
    yield Variant(f"pmap {devices}", {"parallel.kind": "pmap", "parallel.data": devices}, splits=True)
    yield Variant("fsdp and 2 microbatches", {"parallel.fsdp": devices // 2, "accumulation": 2}, splits=True)
    for remat in ("dots", "full"):
        yield Variant(f"remat {remat}", {"model.remat": remat})
    if not config.model.share_layers:
        yield Variant(
            "unrolled layers" if config.model.scan_layers else "scanned layers",
            {"model.scan_layers": not config.model.scan_layers},
        )


def selfcheck(
    config: Config, folder: pathlib.Path, devices: list[jax.Device], only: str | None = None
) -> Iterator[Found]:
    """Yields how far each layout is from one device, in turn.

    Args:
        config: the prepared config, with the size of the vocabulary.
        folder: for the text that stands in for the run's data.
        devices: CPU devices.
        only: part of the names of the layouts to compare; None: all.

    Raises:
        FlagError: no layout has such a name.
    """
    known = list(variants(config, len(devices)))
    if config.model.family.causal and GENERATION not in {variant.name for variant in known}:
        known.append(Variant(GENERATION))
    chosen = [variant for variant in known if only is None or only in variant.name]
    if not chosen or only == "":
        raise FlagError(f"--only={only}: is part of no layout's name; there are {'; '.join(x.name for x in known)}")
    run = build(stand_in(config, folder, words=1), folder / "run", make_mesh(config.parallel, devices[:1]))
    batches = [_batch(run, step) for step in range(STEPS)]
    make_state, _ = state_maker(run.model, run.config.optimizer, hyperparameters(run.config), 0, run.mesh)
    params = unstack_layers(jax.device_get(make_state().params))
    one = measure(run, batches, params)
    draws = bool(_worst(one.gradient, measure(run, batches, params, seed=1, steps=0).gradient)[1])
    for variant in chosen:
        if variant.name == GENERATION:
            yield _generated(run, params)
            continue
        if variant.splits and (draws or config.model.moe.num_experts):
            yield Found(variant.name, "its random numbers or the routers' balance depend on the parts of a batch")
            continue
        if variant.segments and _separated(batches[0]) is None:
            yield Found(variant.name, "rows hold one text each")
            continue
        try:
            other = _laid_out(run, variant, devices)
        except FlagError as e:
            yield Found(variant.name, str(e).partition(":")[2].strip() or str(e))
            continue
        given = [_separated(batch) for batch in batches] if variant.segments else batches
        measured = measure(other, given, params)
        found = compare(variant.name, one, measured)
        if found.same and measured.work is not None and other.mesh.size > 1:
            found = found._replace(where=odd_work(one.work, measured.work, other.config))
        yield found


def _generated(run: Run, params: PyTree) -> Found:
    """Returns how far texts are from each other that are written alone, together, and scored without a cache."""
    if not run.model.has_vocabulary:
        return Found(GENERATION, "the model has no vocabulary logits")
    config = run.config.with_fields({"model": run.config.model.with_fields({"scan_layers": False})})
    loaded = trained_model(dataclasses.replace(run, config=config), params)
    if loaded.prompts.bidirectional:
        return Found(GENERATION, "prompts have bidirectional attention, and a text read whole is a prompt")
    worst, where = differing_texts(loaded, TOLERANCE)
    return Found(GENERATION, loss=worst, where=where)


def compare(name: str, one: Measured, other: Measured) -> Found:
    """Returns how far a layout is from one device, and the first parameter that differs."""
    losses = max(abs(a - b) / max(abs(a), 1e-6) for a, b in zip(one.losses, other.losses, strict=True))
    worst, where = _worst(one.gradient, other.gradient)
    where = where and f"the gradient of {where} in step 1"
    far = 0.0
    for number, (mine, its) in enumerate(zip(one.params, other.params, strict=True), 1):
        most, path = _worst(mine, its)
        far, where = max(far, most), where or (path and f"{path} after step {number}")
    return Found(name, "", losses, worst, far, where)


def _worst(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """Returns the largest relative difference, and the first parameter where it exceeds the tolerance, or ""."""
    least = _FLOOR * max(float(np.abs(x).max()) for x in one.values())
    differences = {
        path: float(np.abs(x - other[path]).max()) / max(float(np.abs(x).max()), least, 1e-30)
        for path, x in one.items()
    }
    return max(differences.values()), next((path for path, d in differences.items() if not d <= TOLERANCE), "")


def _laid_out(run: Run, variant: Variant, devices: list[jax.Device]) -> Run:
    """Returns the run with another layout; raises FlagError if it does not divide the run."""
    config = replace(run.config, variant.fields)
    mesh = make_mesh(config.parallel, devices[: math.prod(config.parallel.sizes().values())])
    check_mesh(config, mesh)
    model = make_model(config.model, run.task.heads, config.adapted)
    return dataclasses.replace(run, config=config, model=model, mesh=mesh)


def _batch(run: Run, step: int) -> Batch:
    """Returns a batch of the run, whose rows have different weights, so that a mean of means is another loss."""
    size = run.config.batch_size
    rows = [run.stages[-1].example((step * size + i) % len(run.train_examples))[-1] for i in range(size)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    for name, x in batch.items():
        if name.endswith("weights") and np.issubdtype(x.dtype, np.floating):
            # Row i keeps its first share of places; no two halves of the rows, however they are cut, have the same sum.
            share = (1 + 5 * np.arange(size) % 7) / 7
            batch[name] = (
                np.where(np.arange(x.shape[1]) < share[:, None] * x.shape[1], x, 0) if x.ndim > 1 else x * share
            )
            batch[name] = batch[name].astype(x.dtype)
    return batch


def _separated(batch: Batch) -> Batch | None:
    """Returns the batch with a row for each segment of its rows; None if rows hold one segment, or labels of rows."""
    sides = {name.removesuffix("segment_ids"): x for name, x in batch.items() if name.endswith("segment_ids")}
    most = max(int(x.max()) for x in sides.values()) if sides else 0
    own = "decoder_" if "decoder_" in sides else next(iter(sides), "")
    if most < 2 or any(x.ndim != 2 for x in batch.values()):
        return None

    def kept(name: str, x: np.ndarray, number: int) -> np.ndarray:
        side = next((s for s in sides if s and name.startswith(s)), own)
        segments = sides[side]
        if x.shape != segments.shape:
            if name == "prediction_positions":
                return x
            segments = np.take_along_axis(segments, batch["prediction_positions"], axis=1)
        return x if name.endswith("positions") else np.where(segments == number, x, 0).astype(x.dtype)

    numbers = range(1, most + 1)
    return {name: np.concatenate([kept(name, x, number) for number in numbers]) for name, x in batch.items()}


def measure(run: Run, batches: list[Batch], params: PyTree, seed: int = 0, steps: int = STEPS) -> Measured:
    """Returns what a layout computes.

    Args:
        run: the run with this layout.
        batches: on the host.
        params: the initial parameters, in the form of unrolled layers.
        seed: of what steps draw on the device.
        steps: the number of steps.
    """
    config, stage = run.config, run.stages[-1]
    hparams = hyperparameters(config)
    replicas = config.parallel.kind == "pmap"
    if config.model.scan_layers:
        params = nn.meta.unbox(stack_layers(params))
    losses, after, done = [], [], None
    with layout(run):
        make_state, abstract = state_maker(run.model, config.optimizer, hparams, 0, run.mesh, dropout_seed=seed)
        state = make_state(params)
        if replicas:
            train = make_train_step(run.model, stage.task, config.optimizer, config.accumulation, pmap.AXIS)
            step = _over(run, lambda *given: train(*given, NOTHING_FIXED))
            grad = _over(run, lambda *given: pmap.over_replicas(_gradient(run, *given, axis=pmap.AXIS), pmap.AXIS))
            place = lambda batch: {n: x.reshape(run.mesh.size, -1, *x.shape[1:]) for n, x in batch.items()}  # noqa: E731
        else:
            place = lambda batch: to_device(batch, run.mesh)  # noqa: E731
            step, grad = jitted_step(run, stage, abstract), jax.jit(lambda *given: _gradient(run, *given))
            if steps:
                step = step.lower(state, place(batches[0]), hparams).compile()
                done = work(step.as_text(), run.mesh)
        gradient = _by_path(grad(state, place(batches[0]), hparams))
        for batch in batches[:steps]:
            state, metrics = step(state, place(batch), hparams)
            losses.append(float(metrics["loss"]))
            after.append(_by_path(state.params))
    return Measured(tuple(losses), gradient, tuple(after), done)


def _over(run: Run, function: Any) -> Any:
    """Returns a function of state, batch and hyperparameters over the replicas of pmap."""
    return jax.pmap(function, pmap.AXIS, in_axes=(None, 0, None), out_axes=None, devices=list(run.mesh.devices.flat))


def _gradient(run: Run, state: Any, batch: Any, hparams: Any, axis: str | None = None) -> PyTree:
    task, accumulation = run.stages[-1].task, run.config.accumulation
    return loss_and_gradients(run.model, task, state, batch, hparams, accumulation, axis)[1]


def _by_path(params: PyTree) -> dict[str, np.ndarray]:
    """Returns parameters by path, in the form of unrolled layers."""
    leaves = jax.tree_util.tree_leaves_with_path(unstack_layers(jax.device_get(params)))
    return {"/".join(str(key.key) for key in path): np.asarray(x, np.float64) for path, x in leaves}
