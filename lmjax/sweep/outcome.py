"""The outcome of a run of a sweep, read from its workdir."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from lmjax.training.metrics import METRICS, read_lines

# stopped: it ended before its last step, by early stopping or because a rung of the sweep dropped it.
Status = Literal["done", "diverged", "stopped", "crashed"]


class Outcome(NamedTuple):
    """How a run ended, and what it cost.

    Attributes:
        workdir: the run's workdir.
        status: how it ended.
        step: its last step.
        metrics: the metrics of its last evaluation, named as in metrics.jsonl.
        tokens: tokens that it has read.
        flops: model FLOPs of its steps.
        seconds: time of its steps, without compilation, evaluation and checkpoints; of a run that was killed and
            resumed too.
        error: the message of a run that crashed or diverged; empty: it did neither.
    """

    workdir: pathlib.Path
    status: Status
    step: int
    metrics: dict[str, float]
    tokens: int
    flops: float
    seconds: float
    error: str = ""


def lines_of(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Returns the lines of a run's metrics; none if it wrote none."""
    return read_lines(workdir) if (workdir / METRICS).exists() else []


def last_evaluation(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the metrics of the last evaluation in the lines of a run; empty if there is none."""
    found = ({name: x for name, x in line.items() if name.startswith("eval/")} for line in reversed(lines))
    return next(filter(None, found), {})


def outcome(workdir: pathlib.Path, status: Status, error: str = "") -> Outcome:
    """Returns the outcome of a run from the metrics in its workdir; one that wrote none has made no step."""
    lines = lines_of(workdir)
    metrics = last_evaluation(lines)
    trained = [line for line in lines if "train/steps_per_second" in line]
    seconds = flops = 0.0
    for before, line in itertools.pairwise([{"step": 0}, *trained]):
        lasted = (line["step"] - before["step"]) / line["train/steps_per_second"]
        seconds += lasted
        flops += lasted * line["train/model_flops_per_second"]
    step = int(lines[-1]["step"]) if lines else 0
    tokens = int(trained[-1]["train/tokens_seen"]) if trained else 0
    return Outcome(workdir, status, step, metrics, tokens, flops, seconds, error)
