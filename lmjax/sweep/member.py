"""One run of a population: its workdir and what is written there, as a run that trains alone would write it."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

from lmjax.config import Config, from_json
from lmjax.runs.build import Run
from lmjax.runs.workdir import CONFIG, Claim, read_state
from lmjax.sweep.outcome import Outcome, Status, outcome
from lmjax.training.checkpoint import Checkpoints
from lmjax.training.evaluate import Evaluator
from lmjax.training.metrics import MetricsWriter
from lmjax.training.stopping import EarlyStopping


@dataclasses.dataclass
class Member:
    """A run of a population that is being trained.

    Attributes:
        run: the parts of the run.
        claim: the claim on its workdir.
        checkpoints: its checkpoints.
        writer: writes its metrics.
        evaluator: knows its loss weights.
        stopping: its early stopping.
        start: the step that it was restored at; it stays as it is until the population is there.
        ending: how it has ended; None: it is being trained.
        error: why it has diverged.
        step: the step at which it has ended.
        update_sound: whether its latest update is finite.
        loss_sound: whether its held-out losses are finite.
    """

    run: Run
    claim: Claim
    checkpoints: Checkpoints
    writer: MetricsWriter
    evaluator: Evaluator
    stopping: EarlyStopping
    start: int
    ending: Status | None = None
    error: str = ""
    step: int = 0
    update_sound: bool = True
    loss_sound: bool = True

    def moves(self, number: int) -> bool:
        """Returns whether update `number` of the population is one of this member."""
        return self.ending is None and number > self.start

    def evaluated(self, number: int, metrics: dict[str, float]) -> None:
        """Records an evaluation at step `number`."""
        cost = self.stopping.followed.read(metrics)
        self.writer.write(number, metrics)
        self.stopping.add(cost)
        self.checkpoints.note(number, cost)
        self.loss_sound = self.loss_sound and math.isfinite(metrics[f"eval/{self.evaluator.sets[0].name}/loss"])

    def save(self, number: int, state: Any) -> None:
        """Starts to save the state at step `number`."""
        self.checkpoints.save(number, state, good=self.update_sound and self.loss_sound)

    def end(self, status: Status, step: int, error: str = "") -> None:
        """Ends the member at a step; what is being saved is on disk afterwards."""
        self.checkpoints.wait()
        self.ending, self.step, self.error = status, step, error
        if status != "diverged":
            self.claim.done()


def finished(workdir: pathlib.Path, config: Config) -> Outcome | None:
    """Returns the outcome of a run that has ended before, or None if it has steps left."""
    state = read_state(workdir) if workdir.is_dir() else None
    if state is None or state.stage != "done" or from_json(workdir / CONFIG).steps != config.steps:
        return None
    found = outcome(workdir, "done")
    return found if found.step == config.steps else found._replace(status="stopped")
