"""Builds a run from a config and a workdir: stages, evaluation sets, model and mesh."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lmjax.adapters.model import make_model
from lmjax.config import Config, changed, replace
from lmjax.data.mixing import set_rates
from lmjax.data.taught import Taught
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.interop.shards import read_json
from lmjax.model.flops import again_flops, train_flops
from lmjax.model.kernels.sequence import check_split
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.registry import objective_types
from lmjax.objectives.task import Examples, Task
from lmjax.parallel import pmap
from lmjax.parallel.mesh import batch_sharding, check_divisible, make_mesh
from lmjax.runs.cleaning import REMOVED, told
from lmjax.runs.data import VOCAB_MULTIPLE, open_data
from lmjax.runs.identity import IDENTITY, check_identity
from lmjax.runs.learned import keep
from lmjax.streams import subseed
from lmjax.strict_json import write_json
from lmjax.training.evaluate import EvalSet
from lmjax.training.hyperparameters import Hyperparameters
from lmjax.training.stages import Stage, Unpadded


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run.

    Attributes:
        config: the config with the vocabulary size filled in.
        workdir: the folder that everything is written to.
        tokenizer: the run's own tokenizer.
        stages: the stages in their order, each with its rows, batch size and objectives.
        eval_sets: named evaluation sets.
        model: the Flax module.
        mesh: the devices.
    """

    config: Config
    workdir: pathlib.Path
    tokenizer: Vocabulary
    stages: tuple[Stage, ...]
    eval_sets: tuple[EvalSet, ...]
    model: LanguageModel
    mesh: jax.sharding.Mesh

    @property
    def task(self) -> Task:
        """Returns the objectives at the length of the last stage, the run's own."""
        return self.stages[-1].task

    @property
    def plain_model(self) -> LanguageModel:
        """Returns the model without its adapter."""
        return LanguageModel(self.model.config, self.model.heads)

    @property
    def train_examples(self) -> Examples:
        """Returns the training rows at the length of the last stage, the run's own."""
        return self.stages[-1].examples

    @property
    def hparams(self) -> Hyperparameters:
        """Returns the traced hyperparameters, copied to every device."""
        replicated = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        return jax.device_put(hyperparameters(self.config), replicated)

    def token_bytes(self) -> np.ndarray:
        """Returns the UTF-8 bytes of every token, int32 `[vocab]`; 0 for rows of the model without a token."""
        padding = self.config.model.vocab_size - self.tokenizer.vocab_size
        return np.pad(self.tokenizer.token_bytes, (0, padding))

    def flops_per_step(self, stage: Stage, *, computed: bool = False) -> float:
        """Returns the model FLOPs of one step, with the vocabulary projection only at the predicted positions.

        Where the layers read packed rows, these are the rows that most batches have. The few FLOPs of an adapter are
        not counted.

        Args:
            stage: of the run.
            computed: count what a step must compute: attention in causal order at half, and the layers that `remat`
                computes again.
        """
        shapes, predictions = self.shapes(stage)
        frozen = self.config.adapter.kind != "none"
        flops = train_flops(self.model, shapes, predictions, causal=computed, frozen=frozen)
        passes = 2 if self.config.task.r_drop else 1
        return float(passes * (flops + (again_flops(self.model, shapes, causal=True) if computed else 0)))

    def shapes(self, stage: Stage) -> tuple[dict[str, jax.ShapeDtypeStruct], int]:
        """Returns the shapes of the rows that a step of a stage computes, and how many positions it predicts."""
        rows = {name: (stage.batch_size, *x.shape[1:]) for name, x in stage.local_batch().items()}
        if stage.usual_size:
            rows["tokens"] = (stage.usual_size * stage.layout.microbatches, stage.layout.length)
        shapes = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in rows.items()}
        return shapes, math.prod(rows.get("targets", (0,)))


def hyperparameters(config: Config) -> Hyperparameters:
    """Returns the traced hyperparameters of a run."""
    return Hyperparameters.build(
        config.optimizer,
        steps=config.steps,
        dropout=config.model.dropout.rates(),
        loss_weights=config.teacher.weighted(config.task.loss_weights(), objective_types(config.task.objective))
        | config.model.moe.loss_weights(),
        penalties=config.task.penalties(),
        width_factor=None if config.model.mup.width is None else config.model.width_factor,
    )


def checked_mesh(config: Config) -> jax.sharding.Mesh:
    """Returns the mesh of a config; raises FlagError if devices, batch or model do not divide over it."""
    pmap.check(config.parallel)
    mesh = make_mesh(config.parallel)
    check_mesh(config, mesh)
    return mesh


def check_mesh(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Raises FlagError if the batch or the model does not divide over a mesh."""
    model_config = config.model
    for batch_size in (config.batch_size, *config.stages.batch_size):
        check_divisible(
            mesh,
            batch_size=batch_size,
            accumulation=config.accumulation,
            sharded={
                "embed": model_config.embed_dim,
                "heads": model_config.num_heads,
                "kv_heads": model_config.kv_heads,
                "mlp": model_config.mlp_dim,
                "experts": model_config.moe.num_experts or 1,
                "vocab": model_config.vocab_size or VOCAB_MULTIPLE,
            },
        )
    _check_sequence(config, mesh)


def _check_sequence(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Raises FlagError if rows or heads cannot be split over the sequence axis."""
    ways, model = mesh.shape["sequence"], config.model
    if ways == 1:
        return
    lengths = (config.task.length, *config.stages.length)
    if model.family.paired:
        lengths += tuple(config.task.with_fields({"length": n}).default_target_length() for n in lengths)
    ring = config.parallel.sequence_attention == "ring"
    check_split(ways, lengths, model.num_heads // mesh.shape["tensor"], model.attention.kernel, ring=ring)
    parts = len({device.process_index for device in mesh.devices.reshape(-1, ways * mesh.shape["tensor"])[0]})
    if parts > 1:
        raise FlagError(
            f"--config.parallel.sequence={ways}: the positions of a row lie on {parts} processes, of which each reads "
            f"whole rows; take at most {jax.local_device_count()} devices for sequence x tensor"
        )


def build(config: Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh | None = None) -> Run:
    """Returns the parts of a run: tokenises the data and checks model and mesh, but compiles nothing.

    Args:
        config: the run's config.
        workdir: the folder that everything is written to.
        mesh: the devices, checked against the config; None: those that the config describes.

    Raises:
        FlagError: sizes that do not fit the devices or the tokenizer.
        DataError: data that cannot be read.
        ConfigMismatchError: the workdir was trained on other data.
    """
    mesh = checked_mesh(config) if mesh is None else mesh
    if not config.init_from and (refers := [o.name for o in objective_types(config.task.objective) if o.refers]):
        raise FlagError(
            f"--objective={refers[0]}: compares the model with the one that it starts from; give --init_from=PLACE"
        )
    data = open_data(config, workdir)
    config, tokenizer, stores = data.config, data.tokenizer, data.train
    tokens = [s.num_tokens for s in stores.values()]
    rates = set_rates(config.data.weights, tokens, config.data.temperature)
    rated = dict(zip(stores, zip(stores.values(), rates, strict=True), strict=True))
    stages = _stages(config, mesh, tokenizer, lambda task, seed: task.mixed_examples(rated, seed))
    task = stages[-1].task
    run = Run(
        config=_with_steps(config, len(stages[-1].examples)),
        workdir=workdir,
        tokenizer=tokenizer,
        stages=stages,
        eval_sets=tuple(
            EvalSet.build(
                name,
                task.examples(each, 0, name),
                batch_size=config.batch_size,
                max_batches=config.evaluation.batches,
                token_bytes=tokenizer.token_bytes,
            )
            for name, each in data.evaluated.items()
        ),
        model=make_model(config.model, task.heads, config.adapted),
        mesh=mesh,
    )
    # Written last, so that a failed or killed build leaves nothing that another run would use as its own.
    if jax.process_index() == 0:
        _write(run, data.identity, data.removed)
        for line in told(data.removed):
            print(line, file=sys.stderr)
    return run


def sibling(run: Run, config: Config, own: Config, workdir: pathlib.Path) -> Run:
    """Returns a run on the same rows and mesh as a built run, with another config, which builds the same model.

    Args:
        run: the built run.
        config: the config that it was built from.
        own: the other config.
        workdir: the folder of the other run.

    Raises:
        ConfigMismatchError: the workdir was trained on other data.
    """
    identity = read_json(run.workdir / IDENTITY)
    check_identity(workdir, identity)
    filled = {path: there for path, (_, there) in changed(config, run.config).items()}
    own = replace(own, filled)
    model = make_model(own.model, run.task.heads, own.adapted)
    made = dataclasses.replace(run, config=own, workdir=workdir, model=model)
    _write(made, identity, read_json(run.workdir / REMOVED) if (run.workdir / REMOVED).exists() else {})
    return made


def _write(run: Run, identity: Mapping[str, Any], removed: Mapping[str, Any]) -> None:
    """Writes to the workdir of a run: its tokenizer, what its data are and lack, and what the config learned."""
    if removed and not (run.workdir / REMOVED).exists():
        run.workdir.mkdir(parents=True, exist_ok=True)
        write_json(run.workdir / REMOVED, removed)
    if not (run.workdir / IDENTITY).exists():
        run.workdir.mkdir(parents=True, exist_ok=True)
        run.tokenizer.save_in(run.workdir)
        write_json(run.workdir / IDENTITY, identity)
    # The same data gives the same labels, so a file that was lost is written again.
    keep(run.config, run.workdir)


def _with_steps(config: Config, rows: int) -> Config:
    """Returns the config with the steps of its epochs over `rows` rows; unchanged if it has no epochs."""
    if config.epochs is None:
        return config
    return config.with_fields({"steps": max(1, math.ceil(config.epochs * rows / config.batch_size))})


def _stages(
    config: Config, mesh: jax.sharding.Mesh, tokenizer: Vocabulary, examples: Callable[[Task, int], Examples]
) -> tuple[Stage, ...]:
    """Returns the stages of a run, each with its own rows and its own order; most runs have one stage.

    Args:
        config: the run's config.
        mesh: the devices.
        tokenizer: the run's tokenizer.
        examples: from a task and a seed to the training rows.
    """
    stages, taught = [], Taught(config.teacher.place) if config.teacher.recorded else None
    spans = config.stages.spans(config.batch_size, config.task.length)
    for number, (begin, end, batch_size, length) in enumerate(spans):
        task_config = config.task.with_fields({"length": length})
        task = Task.build(task_config, tokenizer, config.model.architecture)
        # The last stage has the seed of a run without stages, and so the same order; each other stage has its own seed.
        left, seed = len(spans) - 1 - number, config.seed_of("order")
        seed = subseed(seed, "stage", left) if left else seed
        rows = dataclasses.replace(examples(task, seed), taught=taught)
        stages.append(Stage(begin, end, batch_size, seed, task, rows, _unpadded(config, mesh)))
    return tuple(stages)


def _unpadded(config: Config, mesh: jax.sharding.Mesh) -> Unpadded | None:
    """Returns how rows may be packed for the layers, or None if the layers read them as they are.

    Tokens move between rows, so the devices may split the model, and not the batch.
    """
    whole = batch_sharding(mesh).shard_shape((mesh.size,)) == (mesh.size,) and mesh.shape["sequence"] == 1
    alone = config.parallel.kind == "mesh" and jax.process_count() == 1
    if config.data.unpad and whole and alone and not config.model.family.paired:
        return Unpadded(config.accumulation, config.model.max_length)
    return None
