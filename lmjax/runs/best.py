"""The best checkpoint of a run: the one with the best value of the metric that the run follows."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Literal

from lmjax.config import Config
from lmjax.errors import CheckpointError
from lmjax.evaluation.measures import MEASURES
from lmjax.training.checkpoint import saved_steps
from lmjax.training.evaluate import followed
from lmjax.training.metrics import METRICS, read_lines

# Which checkpoint of a workdir is meant: that of a step, the best, or, with None, the newest.
Step = int | Literal["best"] | None
BEST = "best"


def falling(objectives: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the objectives' metrics that are better when they are lower, besides their losses."""
    return tuple(name for o in objectives if o in MEASURES for name in MEASURES[o].falling)


def best_step(workdir: pathlib.Path, config: Config) -> int:
    """Returns the step of the saved checkpoint that has the best value of `config.evaluation.metric`.

    Of equal values the earliest counts, as in `Checkpoints`, which keeps this checkpoint while the run trains.

    Raises:
        CheckpointError: no saved checkpoint was evaluated.
    """
    saved = saved_steps(workdir)
    written = [line for line in (read_lines(workdir) if (workdir / METRICS).is_file() else ()) if _sets(line)]
    if not written:
        raise CheckpointError(f"--step={BEST}: {workdir} holds no evaluation in {METRICS}; {_other(saved)}")
    metric = followed(config.evaluation.metric, _sets(written[0]), falling(config.task.objective))
    costs = {line["step"]: metric.cost(line[metric.name]) for line in written if metric.name in line}
    known = [(costs[step], step) for step in saved if math.isfinite(costs.get(step, math.nan))]
    if not known:
        raise CheckpointError(
            f"--step={BEST}: no checkpoint of {workdir} has a finite value of {metric.name} "
            f"(--config.evaluation.metric) in {METRICS}; {_other(saved)}"
        )
    return min(known)[1]


def _sets(line: dict[str, float]) -> list[str]:
    """Returns the names of the evaluation sets in a line of metrics.jsonl, in the run's order; none: of training."""
    parts = [name.split("/") for name in line]
    return [each[1] for each in parts if len(each) == 3 and (each[0], each[2]) == ("eval", "loss")]


def _other(saved: Sequence[int]) -> str:
    """Returns what else a user can name."""
    return f"name one of the checkpoints with --step={' or '.join(map(str, saved))}" if saved else "train it first"
