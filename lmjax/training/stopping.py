"""Early stopping: a run ends once its held-out loss has stopped falling."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable

from absl import logging

from lmjax.training.checkpoint import Checkpoints
from lmjax.training.evaluate import EvaluationConfig
from lmjax.training.metrics import read_metrics


class EarlyStopping:
    """Counts the evaluations since the last improvement, a simple form of the criteria of Prechelt 1998, section 2.

    It is rebuilt from the losses in metrics.jsonl, so a resumed run stops at the same step as one without a break.
    """

    def __init__(self, config: EvaluationConfig, losses: Iterable[float] = ()):
        """Counts the losses of the run so far."""
        self._config = config
        self._best, self._since = math.inf, 0
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> None:
        """Adds a held-out loss; a loss that is not finite is not an improvement."""
        if loss < self._best - self._config.min_delta:
            self._best, self._since = loss, 0
        else:
            self._since += 1

    @property
    def reached(self) -> bool:
        """Returns whether the run ends."""
        return 0 < self._config.patience <= self._since

    def __str__(self) -> str:
        return (
            f"the held-out loss has not fallen below {self._best:.4f} by more than {self._config.min_delta:g} in "
            f"{self._since} evaluations (--config.evaluation.patience={self._config.patience})"
        )


def resumed(
    config: EvaluationConfig, checkpoints: Checkpoints, workdir: pathlib.Path, name: str, start: int
) -> EarlyStopping:
    """Returns the early stopping of a run that starts or resumes, and passes the recorded losses to its checkpoints.

    Args:
        config: when the run is evaluated and stopped.
        checkpoints: the run's checkpoints.
        workdir: the run's workdir, with its metrics.
        name: the evaluation set whose loss decides.
        start: updates done so far; 0: the run begins and has no losses.
    """
    written = start and (workdir / "metrics.jsonl").exists()
    steps, losses = read_metrics(workdir, f"eval/{name}/loss") if written else ([], [])
    if start and not steps:
        logging.warning(
            "%s: metrics.jsonl has no held-out loss of this run; early stopping and the best checkpoint start over",
            workdir,
        )
    # metrics.jsonl holds null for a loss that is not finite.
    known = {s: math.nan if x is None else x for s, x in zip(steps, losses, strict=True) if s <= start}
    for step, loss in known.items():
        checkpoints.note(step, loss)
    return EarlyStopping(config, known.values())
