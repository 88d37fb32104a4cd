"""A wall-clock budget: the length of the run, and so its schedule, is planned from the measured speed.

Geiping and Goldstein 2022, arXiv:2212.14034, section 3: what matters is what a budget of time gives, so the schedule is
tied to the clock. The total of steps is a traced number: a new plan compiles nothing.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmjax.training.metrics import Timers, keep_lines

# Until there is a plan the rate stays at its peak: what is planned is the fall.
UNPLANNED = 2**30
_FIRST_STEPS = 5
_PLANS = 50


@dataclasses.dataclass
class Budget:
    """Plans a run that ends when its time does.

    The clock runs from the opening of the budget, compilation included: it is time, though no step's time. Text is
    tokenised before. A plan asks how many more steps fit, each at the recent speed and with its share of the
    evaluations and checkpoints, before a last evaluation and a last checkpoint. Machines change their speed, so there
    is a new plan whenever a fiftieth of the budget is gone, and with every checkpoint. Each plan is a line of
    `plan.jsonl`; a run that resumes has the time left that its checkpoint's line says.

    Attributes:
        seconds: the budget.
        path: where plans are written down.
        evaluation_every: steps between evaluations, or 0.
        checkpoint_every: steps between checkpoints, or 0.
        timers: where the time went.
        total: steps of the whole run, as planned.
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
        """Takes up a run at `step`: the time used and the speeds that its last plan wrote down."""
        lines = keep_lines(self.path, step) if jax.process_index() == 0 else []
        last = json.loads(lines[-1]) if lines else {}
        self._used = last.get("seconds", 0.0)
        self._costs = {name: last.get(f"{name}_seconds", 0.0) for name in self._costs}
        self.total = int(_from_first(np.array(last.get("total", UNPLANNED))))
        self.forget(step)

    def forget(self, step: int) -> None:
        """Measures the steps after `step` anew: they may cost something else."""
        self._costs["step"] = 0.0
        self._next, self._mark = step + _FIRST_STEPS, self._now(step)

    def due(self, step: int) -> bool:
        """Returns whether it is time for a plan."""
        return step >= self._next

    def plan(self, step: int) -> int:
        """Returns the new total of steps, after `step` of them; the same in every process, and written down."""
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
        """Returns the seconds used so far, after bringing the costs up to date."""
        last, now = self._mark, self._now(step)
        if step > last.step:
            new = (now.seconds - last.seconds - (now.beside - last.beside)) / (step - last.step)
            # The mean of the last few measurements: neither a hiccup nor an hour ago decides.
            self._costs["step"] = 0.3 * new + 0.7 * (self._costs["step"] or new)
            for name in ("evaluation", "checkpoint"):
                if count := now.counts[name] - last.counts[name]:
                    self._costs[name] = (now.spent[name] - last.spent[name]) / count
            self._mark = now
        return now.seconds


@dataclasses.dataclass(frozen=True)
class _Mark:
    """Clocks at a step: seconds used, seconds without training, and seconds and counts by purpose."""

    step: int
    seconds: float
    beside: float
    spent: dict[str, float]
    counts: dict[str, int]


def _from_first(values: np.ndarray) -> np.ndarray:
    """Returns the first process's values in every process: clocks differ, and all must take the same steps."""
    return values if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(values)
