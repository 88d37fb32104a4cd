"""Trains runs that share a program as one population: one compiled step, one batch for all, a workdir for each run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.axes import POPULATION
from lmjax.config import Config
from lmjax.errors import FlagError
from lmjax.model.parameters import unboxed
from lmjax.parallel.compilation_cache import cache_compilations
from lmjax.parallel.malloc import in_turn
from lmjax.parallel.mesh import population_mesh, to_device
from lmjax.parallel.watchdog import Watchdog
from lmjax.phases import phase
from lmjax.runs.adopt import beginning
from lmjax.runs.base import known_base
from lmjax.runs.build import Run, build, check_mesh, hyperparameters, sibling
from lmjax.runs.fit import evaluator, layout, stage_batches
from lmjax.runs.identity import environment
from lmjax.runs.opened import compiling, open_run
from lmjax.runs.references import referenced
from lmjax.runs.workdir import CONFIG, claim_workdir
from lmjax.strict_json import write_json
from lmjax.sweep.loop import Population, Rung
from lmjax.sweep.member import Member, finished
from lmjax.sweep.outcome import Outcome, outcome
from lmjax.sweep.program import program
from lmjax.training.calls import Reader
from lmjax.training.checkpoint import Checkpoints, saved_steps
from lmjax.training.fixed import Fixed
from lmjax.training.metrics import Timers
from lmjax.training.population import (
    Form,
    Own,
    Stacker,
    default_form,
    make_population_step,
    over_members,
    stacked_shapes,
)
from lmjax.training.preemption import StopRequest
from lmjax.training.stages import Course, OpenStage, Stage, Steps
from lmjax.training.state import StateKeys, TrainState, init_state, state_maker
from lmjax.training.step import make_eval_step, make_train_step

PyTree = Any


def train_population(
    configs: Sequence[Config],
    workdirs: Sequence[str | pathlib.Path],
    *,
    rungs: Sequence[Rung] = (),
    progress: bool = True,
    form: Form | None = None,
) -> list[Outcome]:
    """Returns the outcomes of runs with the same `program`, trained together from where each workdir has stopped.

    Every run has the workdir that `lmjax train` would leave. A run whose updates are not finite, or that stops early,
    stays as it is then, and the others go on.

    Args:
        configs: the configs of the runs.
        workdirs: their workdirs.
        rungs: the steps at which the worse members stop.
        progress: whether to show a progress bar.
        form: how the members are computed; None: as is fastest on this backend.

    Raises:
        FlagError: the runs share no program, or another process trains in one of the workdirs.
        ConfigMismatchError: a workdir belongs to a run with another config.
        PreemptedError: the process was asked to stop; all members are saved.
    """
    workdirs = [pathlib.Path(workdir) for workdir in workdirs]
    programs = {program(config) for config in configs}
    if len(programs) != 1 or None in programs:
        raise FlagError(
            "these runs are no population: they differ in more than numbers, initial values and seeds of parameters "
            "and dropout, or have minutes, rollbacks, pmap or steps_per_call; train them one after the other"
        )
    if jax.process_count() > 1:
        raise FlagError(f"a population trains in one process, and there are {jax.process_count()}; start one")
    before = {workdir: finished(workdir, config) for workdir, config in zip(workdirs, configs, strict=True)}
    left = [(config, workdir) for config, workdir in zip(configs, workdirs, strict=True) if before[workdir] is None]
    trained: dict[pathlib.Path, Outcome] = {}
    if left:
        with contextlib.ExitStack() as stack:
            population = _opened(stack, left, form or default_form(), progress)
            population.rungs, population.everyone = rungs, workdirs
            population.train()
            for member in population.members:
                found = outcome(member.run.workdir, member.ending, member.error)
                # The members share the time of every step.
                trained[found.workdir] = found._replace(step=member.step, seconds=found.seconds / len(left))
    return [trained.get(workdir) or before[workdir] for workdir in workdirs]


def _opened(
    stack: contextlib.ExitStack, left: Sequence[tuple[Config, pathlib.Path]], form: Form, progress: bool
) -> Population:
    """Returns a population whose members are claimed, built and restored; `stack` closes what it opens."""
    claims = [stack.enter_context(claim_workdir(workdir, config)) for config, workdir in left]
    (config, workdir), *_ = left
    mesh = population_mesh(config.parallel, len(left))
    check_mesh(config, mesh)
    cache_compilations(config.data.cache_path)
    with phase("preparing data and model"):
        first = build(config, workdir, mesh)
        with layout(first):
            first = referenced(first)
        runs = [first, *(sibling(first, config, own, workdir) for own, workdir in left[1:])]
    here = environment()
    for own, place in left:
        write_json(place / CONFIG, own.to_json())
        write_json(place / "env.json", here)
    # Made outside the mesh's context, in which arrays of one device cannot be made.
    hparams = [jax.tree.map(np.asarray, hyperparameters(run.config)) for run in runs]
    stack.enter_context(layout(first))
    for run in runs if config.adapter.kind != "none" else ():
        known_base(run.config, run.workdir)
    fixed, given = beginning(first, progress=False, resumed=any(saved_steps(place) for _, place in left))
    make_state, abstract = state_makers(runs, hparams, given)
    timers = Timers()
    watchdog = stack.enter_context(Watchdog(config.step_timeout * len(left)))
    around = functools.partial(compiling, timers, watchdog)
    step_of = functools.cache(functools.partial(_compiled, first, abstract, hparams[0], fixed, form, around))
    # TaskMetrics and the evaluation step depend on no number that members differ in, so that all share one evaluator.
    step = over_members(lambda params, shared: make_eval_step(first.model, first.task)(params, *shared), mesh, form)
    shared = evaluator(first, jax.jit(lambda params, *shared: step(params, shared)), fixed)
    members, states = [], []
    with timers.time("compilation"), watchdog.paused():
        for run, claim, numbers in zip(runs, claims, hparams, strict=True):
            own = dataclasses.replace(shared, loss_weights=run.config.task.loss_weights())
            checkpoints = stack.enter_context(Checkpoints(run.workdir, config.checkpoint, claim.saved))
            first_state = functools.partial(make_state, run, numbers)
            opened = open_run(stack, run, checkpoints, abstract, first_state, own)
            member = Member(run, claim, checkpoints, opened.writer, own, opened.stopping, opened.start)
            member.update_sound = not opened.start or int(opened.state.skipped_in_a_row) == 0
            members.append(member)
            states.append(opened.state)
    open_stage = functools.partial(_open_stage, first, step_of)
    course = stack.enter_context(Course(first.stages, open_stage, lambda step: 0))
    return Population(
        members=members,
        hparams=hparams,
        states=states,
        stacker=Stacker(abstract, mesh),
        course=course,
        shared=shared,
        stop=stack.enter_context(StopRequest()),
        watchdog=watchdog,
        timers=timers,
        progress=progress,
    )


def state_makers(
    runs: Sequence[Run], hparams: Sequence[PyTree], first_values: Callable[[], PyTree] = lambda: None
) -> tuple[Callable[[Run, PyTree], TrainState], TrainState]:
    """Returns a function from a run and its numbers to its first state, and the state's shapes and shardings.

    Args:
        runs: the runs.
        hparams: the numbers of each.
        first_values: returns the initial parameters that are not random, the same for all.
    """
    first = runs[0]
    optimizer = first.config.optimizer
    _, abstract = state_maker(first.model, optimizer, hparams[0], 0, first.mesh)
    places = jax.tree.map(lambda x: x.sharding, abstract)
    given = functools.cache(first_values)

    @functools.cache
    def maker(model: Any) -> Callable[..., TrainState]:
        # Keys and numbers are arguments, so that members whose models are initialised alike share the program.
        def make(keys: StateKeys, numbers: PyTree, given: PyTree) -> TrainState:
            return unboxed(init_state(model, optimizer, numbers, keys, given))

        return jax.jit(make, out_shardings=places)

    def make(run: Run, numbers: PyTree) -> TrainState:
        keys = StateKeys.of(run.config.seed_of("init"), run.config.seed_of("dropout"))
        return maker(run.model)(keys, numbers, given())

    return make, abstract


def _compiled(
    run: Run,
    abstract: TrainState,
    numbers: PyTree,
    fixed: Fixed,
    form: Form,
    around: Callable[[], contextlib.AbstractContextManager[None]],
    stage: Stage,
    members: int,
) -> Steps:
    """Returns the compiled steps of a stage for a number of members; see `lower_step` and `Steps`."""

    def compiled(size: int, updates: int) -> Callable[..., Any]:
        assert updates == 1, "`program` has no population of runs with several updates in a call"
        step = in_turn(lower_step(run, abstract, numbers, fixed, form, stage, members, size).compile())
        return lambda own, batch: step(*own, batch, fixed)

    return Steps(compiled, stage, around)


def lower_step(
    run: Run,
    abstract: TrainState,
    numbers: PyTree,
    fixed: Fixed,
    form: Form,
    stage: Stage,
    members: int,
    size: int = 0,
) -> jax.stages.Lowered:
    """Returns the lowered step of a population, a function of the fields of `Own`, a batch and the fixed arrays.

    Args:
        run: the parts of one member.
        abstract: the shapes and shardings of one state.
        numbers: the traced hyperparameters of one member.
        fixed: the arrays that no member changes, or their shapes.
        form: how the members are computed.
        stage: the stage.
        members: the number of members.
        size: the packed rows of a microbatch; 0: rows are not packed.
    """
    split = NamedSharding(run.mesh, PartitionSpec(POPULATION))
    own = Own(
        stacked_shapes(abstract, members, run.mesh),
        jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype, sharding=split), numbers),
        jax.ShapeDtypeStruct((members,), bool, sharding=split),
    )
    train_step = make_train_step(run.model, stage.task, run.config.optimizer, run.config.accumulation)
    step = make_population_step(train_step, run.mesh, form)
    places = jax.tree.map(lambda x: x.sharding, own.states)
    jitted = jax.jit(
        lambda states, hparams, frozen, batch, fixed: step(Own(states, hparams, frozen), (batch, fixed)),
        donate_argnums=0,
        out_shardings=(places, None),
    )
    return jitted.lower(*own, to_device(stage.local_batch(size), run.mesh), fixed)


def _open_stage(run: Run, step_of: Callable[[Stage, int], Any], stage: Stage, step: int) -> OpenStage:
    """Returns a stage whose `step` is a function from a number of members to the compiled step."""
    return OpenStage(
        end=stage.end,
        step=functools.partial(step_of, stage),
        place=lambda batch, stacked: to_device(batch, run.mesh, stacked),
        batches=Reader(stage_batches(run, stage, step - stage.begin), alone=True),
        flops_per_step=run.flops_per_step(stage),
    )
