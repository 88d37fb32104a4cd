"""Runs share a program only if their compiled steps are the same but for the numbers that are arguments."""

import typing

import jax
import numpy as np
import pytest

from lmjax.config import replace
from lmjax.parallel.mesh import population_mesh, to_device
from lmjax.runs.build import build, hyperparameters
from lmjax.runs.fit import layout
from lmjax.schema import Schema
from lmjax.sweep.population import lower_step, state_makers
from lmjax.sweep.program import program
from lmjax.training.fixed import NOTHING_FIXED
from lmjax.training.optimizers import OPTIMIZERS
from lmjax.training.state import state_maker
from lmjax.training.step import make_train_step

COLLECTIVES = ("all-reduce", "all-gather", "collective", "all-to-all", "reduce-scatter")
SMALL = {"model__num_layers": 1, "model__embed_dim": 8, "task__length": 16, "steps": 1000}


def numbers(schema: type[Schema], value: Schema, prefix: str) -> dict[str, float]:
    """Returns the numeric fields of a config by dotted path, groups of fields included."""
    found = {}
    for name, x in value:
        if isinstance(x, Schema):
            found |= numbers(type(x), x, f"{prefix}{name}.")
        elif isinstance(x, float) or (isinstance(x, int) and not isinstance(x, bool)):
            found[f"{prefix}{name}"] = x
    return found


def lowered(config, folder):
    """Returns the training step of a config as text, with the numbers of the config as arguments."""
    run = build(config, folder)
    hparams = jax.tree.map(np.asarray, hyperparameters(run.config))
    _, abstract = state_maker(run.model, run.config.optimizer, hparams, 0, run.mesh)
    step = make_train_step(run.model, run.task, run.config.optimizer, run.config.accumulation)
    batch = to_device(run.stages[0].local_batch(), run.mesh)
    return jax.jit(step).lower(abstract, batch, hparams).as_text()


def moved(config, paths):
    """Returns the config with every number at `paths` that can move moved a little, and the paths that moved."""
    done = []
    for path, value in paths.items():
        for changed in (value * 0.9, value + 1, value - 1):
            kind = type(value)
            try:
                other = replace(config, {path: kind(changed)})
            except Exception:
                continue
            if program(other) == program(config) and kind(changed) != value:
                config = other
                done.append(path)
                break
    return config, done


@pytest.mark.parametrize("objective", ["next_token", "mlm,nsp", "rtd"])
def test_runs_of_one_program_have_the_same_step(tiny, tmp_path, objective):
    config = tiny(
        objective, **SMALL, task__z_loss=1e-4, task__label_smoothing=0.1, optimizer__ema_decay=0.9,
        optimizer__spike_factor=3.0, optimizer__layer_decay=0.9, model__dropout__layer=0.1,
    )  # fmt: skip
    other, done = moved(config, numbers(type(config), config, ""))
    wanted = {
        "seed", "optimizer.learning_rate", "optimizer.weight_decay", "optimizer.adamw.beta1", "optimizer.clip_norm",
        "optimizer.ema_decay", "optimizer.spike_factor", "optimizer.layer_decay", "optimizer.warmup_steps",
        "model.dropout.residual", "model.dropout.layer", "model.init_std", "task.z_loss", "task.label_smoothing",
        f"task.{objective.split(',')[0]}.loss_weight",
    }  # fmt: skip
    # A seed decides the order of rows too, unless that has a seed of its own.
    assert wanted - {"seed"} <= set(done), "a number that is traced keeps runs apart"
    assert lowered(config, tmp_path / "a") == lowered(other, tmp_path / "b"), f"one of {done} is not traced"


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_numbers_of_every_optimizer_are_traced(tiny, tmp_path, name):
    schedules = OPTIMIZERS[name]().schedules
    options = {"optimizer__schedule": schedules[0]} if schedules else {}
    config = tiny("next_token", **SMALL, optimizer__name=name, **options)
    own = getattr(config.optimizer, name)
    paths = numbers(type(own), own, f"optimizer.{name}.")
    other, done = moved(config, paths)
    if done:
        assert lowered(config, tmp_path / "a") == lowered(other, tmp_path / "b"), f"one of {done} is not traced"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("steps", 999),
        ("batch_size", 16),
        ("model.num_layers", 3),
        ("model.dropout.residual", 0.0),
        ("optimizer.name", "lion"),
        ("optimizer.schedule", "linear"),
        ("optimizer.clip_norm", None),
        ("optimizer.layer_decay", 0.9),
        ("task.z_loss", 1e-4),
        ("task.mlm.mask_rate", 0.4),
        ("data.held_out", 0.3),
        ("tokenizer.vocab_size", 999),
        ("seed", 1),
        ("seeds.order", 1),
        ("seeds.subset", 1),
        ("evaluation.every", 7),
    ],
)
def test_other_fields_keep_runs_apart(tiny, path, value):
    config = tiny("mlm")
    assert path.split(".")[0] in typing.get_type_hints(type(config))
    assert program(replace(config, {path: value})) != program(config)


def test_seeds_of_single_sources_do_not(tiny):
    config = tiny("mlm", seeds__order=0, seeds__subset=0)
    for path in ("seed", "seeds.init", "seeds.dropout"):
        assert program(replace(config, {path: 5})) == program(config)


@pytest.mark.parametrize(
    ("path", "value"),
    [("minutes", 1.0), ("on_divergence", "rollback"), ("parallel.kind", "pmap"), ("steps_per_call", 2)],
)
def test_runs_that_need_the_loop_of_one_run_are_no_population(tiny, path, value):
    assert program(replace(tiny("mlm"), {path: value})) is None


@pytest.mark.usefixtures("every_device")
def test_members_on_devices_of_their_own_do_not_communicate(tiny, tmp_path):
    config = tiny("mlm,nsp", **SMALL, accumulation=2)
    for members, communicate in ((8, False), (2, True)):
        mesh = population_mesh(config.parallel, members)
        assert mesh.shape["population"] == members
        run = build(config, tmp_path / str(members), mesh)
        hparams = jax.tree.map(np.asarray, hyperparameters(run.config))
        with layout(run):
            _, abstract = state_makers([run], [hparams])
            text = lower_step(run, abstract, hparams, NOTHING_FIXED, "map", run.stages[0], members).compile().as_text()
        found = [name for name in COLLECTIVES if name in text]
        assert bool(found) == communicate, f"{members} members on 8 devices: {found}"
