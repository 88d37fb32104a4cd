"""Early stopping: a run ends once the held-out metric that it follows has stopped improving."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable

from absl import logging

from lmjax.training.checkpoint import Checkpoints
from lmjax.training.evaluate import EvaluationConfig, Followed
from lmjax.training.metrics import read_metrics


class EarlyStopping:
    """Counts the evaluations since the last improvement, a simple form of the criteria of Prechelt 1998, section 2.

    It is rebuilt from the values in metrics.jsonl, so a resumed run stops at the same step as one without a break.

    Attributes:
        followed: the metric.
    """

    def __init__(self, config: EvaluationConfig, followed: Followed, costs: Iterable[float] = ()):
        """Counts the costs of the run so far."""
        self.followed = followed
        self._config = config
        self._best, self._since = math.inf, 0
        for cost in costs:
            self.add(cost)

    def add(self, cost: float) -> None:
        """Adds the cost of an evaluation; one that is not finite is not an improvement."""
        if cost < self._best - self._config.min_delta:
            self._best, self._since = cost, 0
        else:
            self._since += 1

    @property
    def reached(self) -> bool:
        """Returns whether the run ends."""
        return 0 < self._config.patience <= self._since

    def __str__(self) -> str:
        moved = "fallen below" if self.followed.falling else "risen above"
        return (
            f"{self.followed.name} has not {moved} {self.followed.cost(self._best):.4f} by more than "
            f"{self._config.min_delta:g} in {self._since} evaluations "
            f"(--config.evaluation.patience={self._config.patience})"
        )


def resumed(
    config: EvaluationConfig, checkpoints: Checkpoints, workdir: pathlib.Path, followed: Followed, start: int
) -> EarlyStopping:
    """Returns the early stopping of a run that starts or resumes, and passes the recorded values to its checkpoints.

    Args:
        config: when the run is evaluated and stopped.
        checkpoints: the run's checkpoints.
        workdir: the run's workdir, with its metrics.
        followed: the metric that decides.
        start: updates done so far; 0: the run begins and has no metrics.
    """
    written = start and (workdir / "metrics.jsonl").exists()
    steps, values = read_metrics(workdir, followed.name) if written else ([], [])
    if start and not steps:
        logging.warning(
            "%s: metrics.jsonl has no %s of this run; early stopping and the best checkpoint start over",
            workdir, followed.name,
        )  # fmt: skip
    known = {step: followed.cost(value) for step, value in zip(steps, values, strict=True) if step <= start}
    for step, cost in known.items():
        checkpoints.note(step, cost)
    return EarlyStopping(config, followed, known.values())
