"""Trains a built run: restores or makes the state, compiles the stages' steps, and runs the loop."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from absl import logging

from lmjax.axes import SEQUENCE_RULES
from lmjax.config import Config
from lmjax.data.pipeline import Batches, batches
from lmjax.errors import DivergedError
from lmjax.parallel import pmap
from lmjax.parallel.malloc import in_turn
from lmjax.parallel.mesh import to_device
from lmjax.parallel.peak import peak_flops_together
from lmjax.parallel.watchdog import Watchdog
from lmjax.runs import diverged
from lmjax.runs.adopt import beginning
from lmjax.runs.build import Run
from lmjax.runs.measured import measured, write_figures
from lmjax.runs.opened import compiling, open_run
from lmjax.runs.references import referenced
from lmjax.runs.workdir import Claim
from lmjax.training.budget import Budget
from lmjax.training.calls import CallPlan, Reader, placed, several
from lmjax.training.checkpoint import Checkpoints
from lmjax.training.evaluate import Evaluator
from lmjax.training.fixed import Fixed
from lmjax.training.hyperparameters import Hyperparameters
from lmjax.training.loop import Loop
from lmjax.training.metrics import Timers
from lmjax.training.preemption import StopRequest
from lmjax.training.rollback import Rollbacks
from lmjax.training.stages import Course, OpenStage, Stage, Steps
from lmjax.training.state import TrainState, state_maker
from lmjax.training.step import make_eval_step, make_train_step


def fit(
    run: Run,
    claim: Claim | None,
    *,
    progress: bool,
    announce: Callable[[Run, Any, int], None] | None = None,
) -> tuple[TrainState, str]:
    """Returns the state after the last step, and why the run ended early, or "".

    Args:
        run: the parts of the run.
        claim: the claim on its workdir, which records the run's progress; None: another process has it.
        progress: whether to show a progress bar.
        announce: called before anything is compiled, with the run, the shapes of its state, and the step at which it
            starts or resumes.
    """
    with layout(run):
        run = referenced(run)
    while True:
        rollbacks = Rollbacks(run.workdir)
        try:
            return _fit(run, rollbacks, claim, progress, announce)
        except DivergedError as e:
            path = diverged.note(run, rollbacks, e)
            if run.config.on_divergence != "rollback":
                raise DivergedError(f"{e}. {path} lists the rows", **e.facts) from e
            if claim is not None:
                claim.saved(e.good or None)
            diverged.go_back(run, rollbacks, e)


def _fit(
    run: Run,
    rollbacks: Rollbacks,
    claim: Claim | None,
    progress: bool,
    announce: Callable[[Run, Any, int], None] | None,
) -> tuple[TrainState, str]:
    """Returns what `fit` returns, or raises DivergedError; `rollbacks` are the run's rollbacks so far."""
    config, hparams, timers = run.config, run.hparams, Timers()
    budget = _budget(run, timers)
    with (
        layout(run),
        Checkpoints(run.workdir, config.checkpoint, claim and claim.saved) as checkpoints,
        # Entered before compilation, so that a signal during compilation is noted: the run makes one step and saves it.
        StopRequest() as stop,
        Watchdog(config.step_timeout * config.steps_per_call) as watchdog,
        contextlib.ExitStack() as stack,
    ):
        make_state, abstract = _state_maker(run, hparams)
        peak = peak_flops_together()
        with timers.time("compilation"), watchdog.paused():
            fixed, given = beginning(run, progress=progress, resumed=bool(checkpoints.steps))
            evaluated = evaluator(run, jax.jit(make_eval_step(run.model, run.task)), fixed)
            # A new state is computed while the first step is compiled, because JAX dispatches asynchronously.
            opened = open_run(stack, run, checkpoints, abstract, lambda: make_state(given()), evaluated)
        start = opened.start
        _warn(config)
        if announce is not None:
            announce(run, abstract, start)
        if budget:
            budget.open(start)

        calls = CallPlan(config.steps_per_call, (config.evaluation.every, config.checkpoint.every))

        def start_stage(stage: Stage, step: int) -> OpenStage:
            around = functools.partial(compiling, timers, watchdog)
            updates = calls.updates(step, stage.end, budget.total if budget else config.steps)
            return _open_stage(run, stage, step, rollbacks.skipped(step), abstract, hparams, fixed, around, updates)

        course = stack.enter_context(Course(run.stages, start_stage, rollbacks.skipped))
        # The first training step is compiled before the first evaluation, so that errors in it appear early.
        if start < config.steps or budget:
            course.at(start)
        if claim is not None:
            claim.begun()
        state = Loop(
            steps=config.steps, max_skipped=config.max_skipped, evaluation=config.evaluation,
            checkpoint=config.checkpoint, logging=config.logging, hparams=hparams, course=course, calls=calls,
            budget=budget, stopping=opened.stopping, evaluator=evaluated, checkpoints=checkpoints,
            writer=opened.writer, stop=stop, timers=timers, watchdog=watchdog, peak_flops=peak, progress=progress,
        ).run(opened.state)  # fmt: skip
        if opened.writer is not None:
            write_figures(run, evaluated.measured, int(state.step))
    return state, f"stopped at step {int(state.step)}: {opened.stopping}" if opened.stopping.reached else ""


def _budget(run: Run, timers: Timers) -> Budget | None:
    """Returns the plan of a run that ends after a time; None: it ends after a number of steps."""
    config = run.config
    return config.minutes and Budget(
        seconds=60 * config.minutes,
        path=run.workdir / "plan.jsonl",
        evaluation_every=config.evaluation.every,
        checkpoint_every=config.checkpoint.every,
        timers=timers,
    )


def _state_maker(run: Run, hparams: Hyperparameters) -> tuple[Callable[..., TrainState], TrainState]:
    """Returns what `state_maker` returns for a run."""
    config = run.config
    init, dropout = config.seed_of("init"), config.seed_of("dropout")
    return state_maker(run.model, config.optimizer, hparams, init, run.mesh, dropout_seed=dropout)


def _warn(config: Config) -> None:
    """Warns of a warm-up, or of calls, longer than the run, unless a time budget decides the number of steps."""
    if config.steps < config.steps_per_call and config.minutes is None:
        logging.warning(
            "--config.steps_per_call=%d is more than the run of %d steps, whose calls make one update each",
            config.steps_per_call, config.steps,
        )  # fmt: skip
    optimizer, warmup = config.optimizer, config.optimizer.warmup(config.steps)
    if warmup >= config.steps > 1 and config.minutes is None:
        logging.warning(
            "--config.optimizer.warmup_steps=%d is no shorter than the run of %d steps: the learning rate rises to "
            "%.3g, and its peak %.3g is %s; lower it, or take --config.optimizer.warmup_steps=none",
            warmup, config.steps, optimizer.learning_rate * config.steps / warmup, optimizer.learning_rate,
            "never reached" if warmup > config.steps else "reached only at the last update",
        )  # fmt: skip


def layout(run: Run) -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which axis names are mapped to mesh axes; with pmap they are not mapped."""
    context = contextlib.ExitStack()
    if run.config.parallel.kind == "mesh":
        context.enter_context(jax.set_mesh(run.mesh))
        context.enter_context(nn.logical_axis_rules(SEQUENCE_RULES[run.config.parallel.sequence_attention]))
    return context


def jitted_step(run: Run, stage: Stage, abstract: TrainState, updates: int = 1) -> Any:
    """Returns the training step of a stage for the run's mesh, which `lmjax plan` compiles too.

    Args:
        run: the parts of the run.
        stage: the stage.
        abstract: the shapes, dtypes and shardings of the state.
        updates: of a call; see `several`.
    """
    train_step = make_train_step(run.model, stage.task, run.config.optimizer, run.config.accumulation)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(several(train_step, updates), donate_argnums=0, out_shardings=(shardings, None))


def _open_stage(
    run: Run,
    stage: Stage,
    step: int,
    skipped: int,
    abstract: TrainState,
    hparams: Hyperparameters,
    fixed: Fixed,
    around: Callable[[], contextlib.AbstractContextManager[None]],
    updates: int,
) -> OpenStage:
    """Returns a stage with its compiled step, to run from `step` on.

    Args:
        run: the parts of the run.
        stage: the stage.
        step: the step of the run.
        skipped: the number of batches that rollbacks skipped before it.
        abstract: the shapes, dtypes and shardings of the state.
        hparams: the traced hyperparameters.
        fixed: the arrays that a step reads and never changes.
        around: a context for each compilation.
        updates: of the first call.
    """
    config, mesh = run.config, run.mesh
    if config.parallel.kind == "pmap":
        train_step = make_train_step(run.model, stage.task, config.optimizer, config.accumulation, pmap.AXIS)
        parallel_step, place = lambda updates: pmap.replicate(train_step), lambda batch, _: pmap.to_replicas(batch)
    else:
        parallel_step = functools.partial(jitted_step, run, stage, abstract)
        place = lambda batch, stacked: to_device(batch, mesh, stacked)  # noqa: E731

    def compiled(size: int, updates: int) -> Callable[..., Any]:
        (call,) = placed([stage.local_batch(size)] * updates, updates, place)
        step = in_turn(parallel_step(updates).lower(abstract, call.batch, hparams, fixed).compile())
        return lambda state, batch, hparams: step(state, batch, hparams, fixed)

    return OpenStage(
        end=stage.end,
        step=Steps(compiled, stage, around, updates),
        place=place,
        batches=Reader(stage_batches(run, stage, step - stage.begin + skipped), alone=jax.process_count() == 1),
        flops_per_step=run.flops_per_step(stage),
    )


def stage_batches(run: Run, stage: Stage, start: int) -> Batches:
    """Returns this process's part of the batches of a stage, from batch `start` on."""
    data = run.config.data
    return batches(
        stage.examples,
        stage.examples.mixture,
        seed=stage.seed,
        batch_size=stage.batch_size,
        arrange=stage.layout,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=data.workers,
        prefetch=data.prefetch,
        timeout=data.worker_timeout,
    )


def evaluator(run: Run, step: Callable[..., Any], fixed: Fixed) -> Evaluator:
    """Returns the evaluator of a run with a jitted evaluation step and the arrays that are not trained."""
    replicated = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())
    return Evaluator(
        sets=run.eval_sets,
        step=step,
        mesh=run.mesh,
        token_bytes=jax.device_put(run.token_bytes(), replicated),
        loss_weights=run.config.task.loss_weights(),
        measured=measured(run),
        fixed=fixed,
    )
