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
    """Counts the evaluations since the last one that was better (Prechelt 1998, section 2, strips counted alone).

    It is rebuilt from the losses in metrics.jsonl, so a run that resumes stops where it would have stopped.
    """

    def __init__(self, config: EvaluationConfig, losses: Iterable[float] = ()):
        """Takes up where a run with these losses stands."""
        self._config = config
        self._best, self._since = math.inf, 0
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> None:
        """Notes a held-out loss; one that is not finite is no improvement."""
        if loss < self._best - self._config.min_delta:
            self._best, self._since = loss, 0
        else:
            self._since += 1

    @property
    def reached(self) -> bool:
        """Whether the run ends."""
        return 0 < self._config.patience <= self._since

    def __str__(self) -> str:
        return (
            f"the held-out loss has not fallen below {self._best:.4f} by more than {self._config.min_delta:g} in "
            f"{self._since} evaluations (--config.evaluation.patience={self._config.patience})"
        )


def resumed(
    config: EvaluationConfig, checkpoints: Checkpoints, workdir: pathlib.Path, name: str, start: int
) -> EarlyStopping:
    """Returns where early stopping stands as a run goes on, and notes with the checkpoints which losses they have.

    Args:
        config: of the run.
        checkpoints: of the run.
        workdir: where its metrics are.
        name: of the evaluation set whose loss decides.
        start: updates behind it; 0: the run begins, and has no losses.
    """
    written = start and (workdir / "metrics.jsonl").exists()
    steps, losses = read_metrics(workdir, f"eval/{name}/loss") if written else ([], [])
    if start and not steps:
        logging.warning(
            "%s: metrics.jsonl has no held-out loss of this run; early stopping and the best checkpoint begin anew",
            workdir,
        )
    # JSON has no number for a loss that is none.
    known = {s: math.nan if x is None else x for s, x in zip(steps, losses, strict=True) if s <= start}
    for step, loss in known.items():
        checkpoints.note(step, loss)
    return EarlyStopping(config, known.values())
