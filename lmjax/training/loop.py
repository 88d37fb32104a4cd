"""The training loop, the same for every family and every objective."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging as absl_logging
from tqdm import tqdm

from lmjax.errors import DivergedError, PreemptedError, StuckError, WorkerError
from lmjax.parallel.watchdog import Watchdog
from lmjax.phases import phase
from lmjax.training.budget import UNPLANNED, Budget
from lmjax.training.calls import CallPlan
from lmjax.training.checkpoint import CheckpointConfig, Checkpoints
from lmjax.training.evaluate import EvaluationConfig, Evaluator
from lmjax.training.hyperparameters import Hyperparameters
from lmjax.training.metrics import LoggingConfig, MetricsWriter, Timers, computed, peak_memory
from lmjax.training.preemption import StopRequest
from lmjax.training.stages import Course, OpenStage
from lmjax.training.state import TrainState, read_tokens
from lmjax.training.stopping import EarlyStopping

Metrics = dict[str, float]


@dataclasses.dataclass
class Loop:
    """What the loop needs, built by the caller.

    Attributes:
        steps: updates of the whole run; a budget changes it.
        max_skipped: the run ends with an error after this many non-finite updates in a row.
        evaluation: when to evaluate.
        checkpoint: when to save.
        logging: when to write metrics.
        hparams: the traced hyperparameters.
        course: the stages, with their compiled steps and this process's part of every batch.
        calls: how many updates each call of a compiled step makes.
        budget: plans the number of steps from a time budget; None: the steps are given.
        stopping: early stopping.
        evaluator: evaluates parameters.
        checkpoints: saves states.
        writer: writes metrics; None on all processes but the first.
        stop: records requests to stop.
        timers: time by purpose, compilation included.
        watchdog: ends the process if the run hangs.
        peak_flops: peak FLOP/s of all devices together, or None if unknown.
        progress: whether to show a progress bar.
    """

    steps: int
    max_skipped: int
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig
    hparams: Hyperparameters
    course: Course
    calls: CallPlan
    budget: Budget | None
    stopping: EarlyStopping
    evaluator: Evaluator
    checkpoints: Checkpoints
    writer: MetricsWriter | None
    stop: StopRequest
    timers: Timers
    watchdog: Watchdog
    peak_flops: float | None
    progress: bool = True
    _spikes: int = 0
    _held_out: float | None = None
    _sound: bool = True
    _pending: list[Made] = dataclasses.field(default_factory=list)

    def run(self, state: TrainState) -> TrainState:
        """Returns the last state.

        Raises:
            PreemptedError: the run was asked to stop; the state is saved.
            DivergedError: too many updates in a row, or the last one of the run, were not finite.
            SaveError: a checkpoint could not be written.
        """
        number = int(state.step)
        if self.budget is not None:
            self._follow(self.budget.total)
        if number < self.steps and not self.stopping.reached:
            with self.timers.time("compilation"), phase("compiling the evaluation"), self.watchdog.paused():
                self.evaluator.compile(state.evaluation_params())
        with phase("evaluating before the first step"):
            self._catch_up(state, number)
        self._spikes = 0 if state.spikes is None else int(state.spikes.left_out)
        self._clock = Clock(number, self.timers, self.peak_flops)
        with self._progress(number) as self._bar:
            while number < self.steps and not self.stopping.reached:
                with self.watchdog.paused():
                    stage = self._stage(number)
                begin, (state, made) = number, self._start(stage, state, number)
                number += sum(call.updates for call in made)
                # Reads the metrics of the call before while the device computes the one just started, unless that has
                # ended already, as on a CPU: then both are read, so that its time counts as its own.
                self._report()
                self._pending = made
                if all(call.ended for call in made):
                    self._report()
                # Asked for each step of the call: several processes agree on one of them, which need not be the last.
                asked = [self.stop.stop_at(step) for step in range(begin + 1, number + 1)]
                stopping = any(asked)
                self._plan(number, stopping)
                evaluating = self._due(number, self.evaluation.every) and not stopping
                saving = self._due(number, self.checkpoint.every) or stopping
                if evaluating:
                    self._evaluate(state, number)
                if saving or self.stopping.reached:
                    self._save(number, state)
                if stopping:
                    self.checkpoints.wait()
                    raise PreemptedError(f"stopped at step {number} of {self.steps}, saved; run the command again")
        with self.timers.time("checkpoint"), phase("saving"):
            self.checkpoints.wait()
        if in_a_row := int(state.skipped_in_a_row):
            raise self._diverged(number, in_a_row, {})
        return state

    def _start(self, stage: OpenStage, state: TrainState, number: int) -> tuple[TrainState, list[Made]]:
        """Starts the updates that follow `number`, and returns the state after them and their calls."""
        updates = self.calls.updates(number, stage.end, self.steps)
        self.checkpoints.check()
        self.watchdog.report(f"step {number + 1}")
        try:
            with self.timers.time("input"):
                calls = stage.read(updates)
        except (StuckError, WorkerError):
            self._save_alone(number, state)
            raise
        made = []
        for call in calls:
            state, metrics = stage.step(state, call, self.hparams)
            made.append(Made(number + 1, call.updates, metrics, stage.flops_per_step))
            number += call.updates
        return state, made

    def _stage(self, number: int) -> OpenStage:
        """Returns the stage of update `number + 1`; a new stage starts a new measurement of the speed."""
        changes = self.course.changes(number)
        stage = self.course.at(number)
        if changes and self.budget is not None:
            self.budget.forget(number)
        return stage

    def _plan(self, number: int, stopping: bool) -> None:
        """Makes a new plan of a run with a time budget, if one is due or a checkpoint follows."""
        saving = stopping or self._due(number, self.checkpoint.every)
        if self.budget is not None and (saving or self.budget.due(number)):
            self._follow(self.budget.plan(number))
            self._bar.total = self.steps

    def _follow(self, steps: int) -> None:
        """Sets the length of the run and of its schedule to `steps`."""
        self.steps = steps
        total = jax.device_put(np.float32(steps), self.hparams.total_steps.sharding)
        self.hparams = self.hparams.replace(total_steps=total)

    def _progress(self, start: int) -> tqdm:
        total = None if self.steps >= UNPLANNED else self.steps
        return tqdm(total=total, initial=start, unit="step", disable=not self.progress, dynamic_ncols=True)

    def _due(self, number: int, every: int) -> bool:
        return number == self.steps or (every > 0 and number % every == 0)

    def _catch_up(self, state: TrainState, number: int) -> None:
        """Evaluates the step at which the run starts or resumes, if an evaluation is due and not recorded yet.

        A run that is asked to stop has little time: it saves its state without the evaluation, which is made here.
        """
        if (number == 0 or self._due(number, self.evaluation.every)) and not self.checkpoints.evaluated(number):
            self._evaluate(state, number)

    def _evaluate(self, state: TrainState, number: int) -> None:
        """Evaluates the state, and records the metric that early stopping and the best checkpoint follow."""
        self._report()
        params = state.evaluation_params()
        with self.timers.time("evaluation"):
            here = f"a batch of the evaluation at step {number}"
            metrics = self.evaluator(params, lambda: self.watchdog.report(here))
        cost = self.stopping.followed.read(metrics)
        if self.writer is not None:
            self.writer.write(number, metrics)
        loss = metrics[f"eval/{self.evaluator.sets[0].name}/loss"]
        self.stopping.add(cost)
        self.checkpoints.note(number, cost)
        self._sound = self._sound and math.isfinite(loss)
        self._held_out = loss

    def _save(self, number: int, state: TrainState) -> None:
        # Metrics are written before the checkpoint of their step, because a resumed run does not repeat that step.
        self._report()
        self.watchdog.report(f"saving step {number}")
        with self.timers.time("checkpoint"):
            self.checkpoints.save(number, state, good=self._sound)

    def _save_alone(self, number: int, state: TrainState) -> None:
        """Saves the state of a run that cannot continue; not with several processes, as these must agree to save."""
        if jax.process_count() == 1 and number:
            self._save(number, state)
            self.checkpoints.wait()

    def _diverged(self, number: int, in_a_row: int, values: dict[str, Any]) -> DivergedError:
        """Returns the error for a run that diverged, with the metrics `values` of update `number`."""
        first = number - in_a_row + 1
        return DivergedError(
            f"step {number}: {in_a_row} updates in a row were not finite and were left out, from step {first} on. Give "
            "--on_divergence=rollback to continue in this --workdir from the last good checkpoint without these "
            "batches, or lower --config.optimizer.learning_rate in another --workdir, which can start from this one "
            "with --init_from",
            first=first,
            at=number,
            good=self.checkpoints.good_step(first),
            metrics={name: float(x) for name, x in values.items()},
        )

    def _report(self) -> None:
        """Shows and writes the metrics of the updates that were started and are not reported yet."""
        pending, self._pending = self._pending, []
        for call in pending:
            rows = call.rows()
            for row in rows:
                self._clock.add(int(row["tokens"]), call.flops_per_step)
            # The updates of a call end together, so they have one speed.
            speed = functools.cache(functools.partial(self._clock.read, call.first + call.updates - 1))
            for number, row in enumerate(rows, call.first):
                self._report_one(number, row, speed)

    def _report_one(self, number: int, values: dict[str, Any], speed: Callable[[], Metrics]) -> None:
        """Shows and writes the metrics of a finished update.

        Args:
            number: of the update.
            values: its metrics.
            speed: measures the speeds.
        """
        tokens_seen = read_tokens(values.pop("tokens_seen"))
        in_a_row = int(values.pop("skipped_in_a_row"))
        del values["tokens"]
        self._sound = not in_a_row and math.isfinite(values["loss"])
        self._bar.update()
        if in_a_row:
            absl_logging.warning("step %d: the update is not finite and was left out (%d in a row)", number, in_a_row)
        if (spikes := int(values.get("skipped_spikes", 0))) > self._spikes:
            absl_logging.warning(
                "step %d: a gradient norm of %.3g is a spike; the update was left out", number, values["grad_norm"]
            )
        self._spikes = spikes
        if in_a_row >= self.max_skipped:
            raise self._diverged(number, in_a_row, values)
        # Steps that are evaluated have a line of metrics too; a run always evaluates its last step.
        if number % self.logging.every and not self._due(number, self.evaluation.every):
            return
        speeds = speed()
        held_out = "" if self._held_out is None else f"held-out {self._held_out:.3f}, "
        self._bar.set_postfix_str(
            f"loss {values['loss']:.3f}, {held_out}{speeds['tokens_per_second']:,.0f} tokens/s, "
            f"lr {values['learning_rate']:.1e}",
            refresh=False,
        )
        if self.writer is not None:
            numbers = values | speeds | {"tokens_seen": tokens_seen}
            self.writer.write(number, training_line(numbers, self.course.epochs(number), self.timers))


class Made(NamedTuple):
    """A call whose updates a device computes.

    Attributes:
        first: the number of its first update.
        updates: the number of its updates.
        metrics: of its updates; arrays with the dimension `[updates]` first if there are several.
        flops_per_step: model FLOPs of one update.
    """

    first: int
    updates: int
    metrics: dict[str, jax.Array]
    flops_per_step: float

    @property
    def ended(self) -> bool:
        """Returns whether the updates are computed."""
        return computed(self.metrics)

    def rows(self) -> list[dict[str, Any]]:
        """Returns the metrics of each update, when they are computed."""
        values: dict[str, Any] = jax.device_get(self.metrics)
        if self.updates == 1:
            return [values]
        return [{name: x[index] for name, x in values.items()} for index in range(self.updates)]


def training_line(numbers: Mapping[str, Any], epochs: Mapping[str, float], timers: Timers) -> Metrics:
    """Returns a step's line of metrics.jsonl.

    Args:
        numbers: the metrics of the step, and its speeds.
        epochs: the epochs of each data set that were read, by name.
        timers: the time by purpose.
    """
    return (
        {f"train/{name}": float(value) for name, value in numbers.items()}
        | {f"data/{name}/epochs": value for name, value in epochs.items()}
        | {f"time/{name}": seconds for name, seconds in timers.seconds.items()}
    )


class Clock:
    """Speeds since the last reading, without the time of evaluation, checkpoints and compilation."""

    def __init__(self, step: int, timers: Timers, peak_flops: float | None):
        self._timers, self._peak_flops = timers, peak_flops
        self._start(step)

    def _start(self, step: int) -> None:
        self._step, self._tokens, self._flops = step, 0, 0.0
        self._time, self._lost = time.perf_counter(), self._timers.beside_training

    def add(self, tokens: int, flops: float) -> None:
        """Adds the tokens and the model FLOPs of a step."""
        self._tokens += tokens
        self._flops += flops

    def read(self, step: int) -> Metrics:
        """Returns speeds and peak memory, and starts the next measurement."""
        lost = self._timers.beside_training - self._lost
        seconds = max(time.perf_counter() - self._time - lost, 1e-9)
        speeds = {
            "tokens_per_second": self._tokens / seconds,
            "steps_per_second": (step - self._step) / seconds,
            "model_flops_per_second": self._flops / seconds,
            "peak_memory_bytes": float(peak_memory()),
        }
        if self._peak_flops:
            speeds["peak_share"] = self._flops / seconds / self._peak_flops
        self._start(step)
        return speeds
