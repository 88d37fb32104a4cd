"""The one training loop: every family, every objective."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging
from tqdm import tqdm

from lmjax.errors import DivergedError, PreemptedError
from lmjax.parallel.mesh import to_device
from lmjax.training.checkpoint import CheckpointConfig, Checkpoints
from lmjax.training.evaluate import EvaluationConfig, Evaluator
from lmjax.training.metrics import LoggingConfig, MetricsWriter, Timers, peak_memory
from lmjax.training.optimizer import Hyperparameters
from lmjax.training.preemption import StopRequest
from lmjax.training.state import TrainState, read_tokens

Metrics = dict[str, float]


@dataclasses.dataclass
class Loop:
    """What the loop needs, built by the caller.

    Attributes:
        steps: updates of the whole run.
        max_skipped: updates in a row that may be non-finite before the run gives up.
        evaluation: when to evaluate.
        checkpoint: when to save.
        logging: when to write metrics down.
        step: the compiled training step.
        hparams: the numbers that ride beside the state.
        batches: this process's part of every batch, from the state's step on.
        mesh: the mesh that batches lie on.
        evaluator: evaluates parameters.
        checkpoints: where states are saved.
        writer: where metrics go; None on all processes but the first.
        stop: notes that the run was asked to stop.
        timers: where the time went, compilation included.
        flops_per_step: model FLOPs of one step.
        peak_flops: of all devices together, or None if unknown.
        progress: whether a progress bar is shown.
    """

    steps: int
    max_skipped: int
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    hparams: Hyperparameters
    batches: Iterator[dict[str, np.ndarray]]
    mesh: jax.sharding.Mesh
    evaluator: Evaluator
    checkpoints: Checkpoints
    writer: MetricsWriter | None
    stop: StopRequest
    timers: Timers
    flops_per_step: float
    peak_flops: float | None
    progress: bool = True

    def run(self, state: TrainState) -> TrainState:
        """Returns the last state.

        Raises:
            PreemptedError: asked to stop; the state is saved.
            DivergedError: too many updates in a row were not finite.
            SaveError: a checkpoint could not be written.
        """
        start = int(state.step)
        if start == 0:
            self._evaluate(state, 0)
        pending: tuple[int, dict[str, jax.Array]] | None = None
        clock = _Clock(start, self)
        with self._bar(start) as bar:
            for number in range(start + 1, self.steps + 1):
                with self.timers.time("input"):
                    batch = to_device(next(self.batches), self.mesh)
                state, metrics = self.step(state, batch, self.hparams)
                if pending is not None:
                    # The step just started runs while the one before it is read.
                    self._report(*pending, clock, bar)
                pending = (number, metrics)
                stopping = self.stop.stop_at(number)
                evaluating = self._due(number, self.evaluation.every) and not stopping
                saving = self._due(number, self.checkpoint.every) or stopping
                if evaluating or saving:
                    # What a checkpoint follows must be written down before it: a resumed run does not do it again.
                    self._report(*pending, clock, bar)
                    pending = None
                evaluation = self._evaluate(state, number) if evaluating else None
                if saving:
                    self._save(number, state, evaluation)
                if stopping:
                    self.checkpoints.wait()
                    raise PreemptedError(f"stopped at step {number} of {self.steps}, saved; run the command again")
        with self.timers.time("checkpoint"):
            self.checkpoints.wait()
        return state

    def _bar(self, start: int) -> tqdm:
        return tqdm(total=self.steps, initial=start, unit="step", disable=not self.progress, dynamic_ncols=True)

    def _due(self, number: int, every: int) -> bool:
        return number == self.steps or (every > 0 and number % every == 0)

    def _evaluate(self, state: TrainState, number: int) -> Metrics:
        with self.timers.time("evaluation"):
            metrics = self.evaluator(state.params)
        if self.writer is not None:
            self.writer.write(number, metrics)
        return metrics

    def _save(self, number: int, state: TrainState, evaluation: Metrics | None) -> None:
        first = f"eval/{self.evaluator.sets[0].name}/loss"
        with self.timers.time("checkpoint"):
            self.checkpoints.save(number, state, None if evaluation is None else evaluation[first])

    def _report(self, number: int, metrics: dict[str, jax.Array], clock: _Clock, bar: tqdm) -> None:
        """Shows and writes the metrics of a step that has ended."""
        values: dict[str, Any] = jax.device_get(metrics)
        tokens_seen = read_tokens(values.pop("tokens_seen"))
        in_a_row = int(values.pop("skipped_in_a_row"))
        clock.add(int(values.pop("tokens")))
        bar.update()
        if in_a_row:
            absl_logging.warning("step %d: the update is not finite and was left out (%d in a row)", number, in_a_row)
        if in_a_row >= self.max_skipped:
            raise DivergedError(
                f"step {number}: {in_a_row} updates in a row were not finite; lower --config.optimizer.learning_rate, "
                "or look for bad data at this step"
            )
        if number % self.logging.every and number != self.steps:
            return
        speed = clock.read(number)
        bar.set_postfix_str(
            f"loss {values['loss']:.3f}, {speed['tokens_per_second']:,.0f} tokens/s, lr {values['learning_rate']:.1e}",
            refresh=False,
        )
        if self.writer is not None:
            numbers = {name: float(value) for name, value in values.items()} | speed | {"tokens_seen": tokens_seen}
            self.writer.write(
                number,
                {f"train/{name}": value for name, value in numbers.items()}
                | {f"time/{name}": seconds for name, seconds in self.timers.seconds.items()},
            )


class _Clock:
    """Speeds since the last reading, without the time lost to evaluation, checkpoints and compilation."""

    def __init__(self, step: int, loop: Loop):
        self._loop = loop
        self._step, self._tokens, self._time, self._lost = step, 0, time.perf_counter(), self._losses()

    def _losses(self) -> float:
        return sum(v for k, v in self._loop.timers.seconds.items() if k != "input")

    def add(self, tokens: int) -> None:
        """Counts the tokens of a step."""
        self._tokens += tokens

    def read(self, step: int) -> Metrics:
        """Returns speeds and peak memory, and starts anew."""
        now, lost = time.perf_counter(), self._losses()
        seconds = max(now - self._time - (lost - self._lost), 1e-9)
        flops = self._loop.flops_per_step * (step - self._step) / seconds
        speeds = {
            "tokens_per_second": self._tokens / seconds,
            "steps_per_second": (step - self._step) / seconds,
            "model_flops_per_second": flops,
            "peak_memory_bytes": float(peak_memory()),
        }
        if self._loop.peak_flops:
            speeds["peak_share"] = flops / self._loop.peak_flops
        self._step, self._tokens, self._time, self._lost = step, 0, now, lost
        return speeds
