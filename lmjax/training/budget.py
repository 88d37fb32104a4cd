"""A wall-clock budget: plans the number of steps of a run, and so its schedule, from the measured speed.

As in Geiping and Goldstein 2022, arXiv:2212.14034, section 3, the learning-rate schedule ends when the time does. The
total number of steps is a traced hyperparameter, so a new plan needs no new compilation.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmjax.errors import DataError
from lmjax.training.metrics import Timers, keep_lines

# The total before the first plan: so large that the learning rate stays at its peak.
UNPLANNED = 2**30
# Steps before the first plan, and plans per budget.
_FIRST_STEPS = 5
_PLANS = 50


@dataclasses.dataclass
class Budget:
    """Plans the number of steps of a run that ends after a given time.

    The clock starts when the budget is made, after the text is tokenised. Compilation counts towards the budget, but
    not towards the time of a step. A plan computes how many more steps fit, each at the recent speed and with its share
    of the evaluations and checkpoints, before a last evaluation and a last checkpoint. The speed of a machine varies,
    so there is a new plan after every fiftieth of the budget and with every checkpoint. Each plan is a line of
    `plan.jsonl`; a resumed run reads from its checkpoint's line how much time was used.

    Attributes:
        seconds: the budget.
        path: the file of plans.
        evaluation_every: steps between evaluations, or 0.
        checkpoint_every: steps between checkpoints, or 0.
        timers: time by purpose.
        total: planned steps of the whole run.
    """

    seconds: float
    path: pathlib.Path
    evaluation_every: int
    checkpoint_every: int
    timers: Timers
    total: int = UNPLANNED

    def __post_init__(self):
        self._began, self._used = time.perf_counter(), 0.0
        self._costs = {"step": 0.0, "evaluation": 0.0, "checkpoint": 0.0}

    def open(self, step: int) -> None:
        """Reads the time used and the speeds from the last plan of a run that starts or resumes at `step`."""
        lines = keep_lines(self.path, step) if jax.process_index() == 0 else []
        last = json.loads(lines[-1]) if lines else {}
        for name in ("seconds", "total", *(f"{name}_seconds" for name in self._costs)):
            value = last.get(name, 0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
                raise DataError(
                    f"{self.path}: the last plan has {name}={str(value)[:80]}, which is not a time or a number of "
                    "steps; copy the file back, or remove it: the run then measures its time from here on"
                )
        self._used = last.get("seconds", 0.0)
        self._costs = {name: last.get(f"{name}_seconds", 0.0) for name in self._costs}
        self.total = int(_from_first(np.array(last.get("total", UNPLANNED))))
        self.forget(step)

    def forget(self, step: int) -> None:
        """Starts a new measurement of the speed after `step`, because the steps of another stage may take longer."""
        self._costs["step"] = 0.0
        self._next, self._mark = step + _FIRST_STEPS, self._now(step)

    def due(self, step: int) -> bool:
        """Returns whether a new plan is due."""
        return step >= self._next

    def plan(self, step: int) -> int:
        """Returns the new total of steps, the same in every process, and writes the plan; `step` steps are done."""
        elapsed = self._measure(step)
        costs = self._costs
        shares = (("evaluation", self.evaluation_every), ("checkpoint", self.checkpoint_every))
        each = costs["step"] + sum(costs[name] / every for name, every in shares if every)
        left = self.seconds - elapsed - costs["evaluation"] - costs["checkpoint"]
        ahead = _FIRST_STEPS
        if costs["step"]:
            self.total, ahead = step + max(0, int(left / each)), self.seconds / _PLANS / each
        self.total, self._next = map(int, _from_first(np.array([self.total, step + max(1, int(ahead))])))
        if jax.process_index() == 0:
            line = {"step": step, "seconds": elapsed, "total": self.total}
            with self.path.open("a") as file:
                file.write(json.dumps(line | {f"{name}_seconds": cost for name, cost in costs.items()}) + "\n")
        return self.total

    def _now(self, step: int) -> _Mark:
        return _Mark(
            step=step,
            seconds=time.perf_counter() - self._began + self._used,
            beside=self.timers.beside_training,
            spent=dict(self.timers.seconds),
            counts=dict(self.timers.counts),
        )

    def _measure(self, step: int) -> float:
        """Returns the seconds used so far, and updates the costs."""
        last, now = self._mark, self._now(step)
        if step > last.step:
            new = (now.seconds - last.seconds - (now.beside - last.beside)) / (step - last.step)
            # An average over the last few measurements, so that neither one outlier nor an old speed decides.
            self._costs["step"] = 0.3 * new + 0.7 * (self._costs["step"] or new)
            for name in ("evaluation", "checkpoint"):
                if count := now.counts[name] - last.counts[name]:
                    self._costs[name] = (now.spent[name] - last.spent[name]) / count
            self._mark = now
        return now.seconds


@dataclasses.dataclass(frozen=True)
class _Mark:
    """Readings at a step: seconds used, seconds not spent in steps, and seconds and counts by purpose."""

    step: int
    seconds: float
    beside: float
    spent: dict[str, float]
    counts: dict[str, int]


def _from_first(values: np.ndarray) -> np.ndarray:
    """Returns the first process's values in every process: clocks differ, but all must make the same steps."""
    return values if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(values)
