"""Several updates in one call of a compiled program.

Between two calls the host reads and places a batch, passes hundreds of arrays to the program and reads metrics. For a
small model on a fast device this takes longer than the step itself. A program that scans over the batches of several
updates needs it once for all of them. State and metrics of every update are those of single steps, up to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmjax.data.pipeline import Batches, Features
from lmjax.errors import StuckError, WorkerError
from lmjax.training.scans import scan

PyTree = Any


class Call(NamedTuple):
    """The batches of one call.

    Attributes:
        batch: the placed batch; with several updates, every array has the dimension `[updates]` first.
        updates: the number of updates.
    """

    batch: PyTree
    updates: int


@dataclasses.dataclass(frozen=True)
class CallPlan:
    """Says how many updates each call makes.

    Attributes:
        most: the updates of a call where nothing ends inside it.
        every: the steps between evaluations, and between checkpoints; 0: only at the end.
    """

    most: int
    every: tuple[int, ...]

    def updates(self, step: int, *ends: int | None) -> int:
        """Returns the number of updates of the call that follows `step`: `most`, or 1.

        Calls of several updates begin at the multiples of `most` alone. So the program that made an update depends on
        the step, and not on where a run was interrupted before.

        Args:
            step: updates done so far.
            ends: steps after which the run or the stage ends; None: it does not.
        """
        dues = [(step // every + 1) * every for every in self.every if every]
        fits = all(step + self.most <= end for end in (*dues, *ends) if end is not None)
        return self.most if step % self.most == 0 and fits else 1


def several(step: Callable[..., tuple[PyTree, PyTree]], updates: int) -> Callable[..., tuple[PyTree, PyTree]]:
    """Returns a step of `updates` updates, whose batches and metrics have the dimension `[updates]` first; 1: `step`.

    Args:
        step: from a state, a batch and other arguments to the next state and the metrics.
        updates: of a call.
    """
    if updates == 1:
        return step

    def scanned(state: PyTree, batches: PyTree, *rest: PyTree) -> tuple[PyTree, PyTree]:
        return scan(lambda state, batch: step(state, batch, *rest), state, batches)

    return scanned


class Reader:
    """Reads batches some at a time. An error is raised once the batches before it have been given out."""

    def __init__(self, batches: Batches, *, alone: bool):
        """Makes a reader.

        Args:
            batches: what is read.
            alone: whether no other process reads its part of the same batches. Otherwise an error is raised at once,
                because all processes must make the same calls.
        """
        self._batches, self._alone = batches, alone
        self._error: Exception | None = None

    def take(self, count: int) -> list[Features]:
        """Returns the next `count` batches, or those before an error, if there are any."""
        if self._error is not None:
            raise self._error
        found: list[Features] = []
        try:
            while len(found) < count:
                found.append(next(self._batches))
        except (StuckError, WorkerError) as e:
            if not found or not self._alone:
                raise
            self._error = e
        return found

    def close(self) -> None:
        """Stops what makes the batches."""
        self._batches.close()


def stacked(batches: Sequence[Features]) -> Features | None:
    """Returns the batches as one with the dimension `[updates]` first, or None if they have different shapes."""
    shapes = [{name: x.shape for name, x in batch.items()} for batch in batches]
    if any(shape != shapes[0] for shape in shapes):
        return None
    return {name: np.stack([batch[name] for batch in batches]) for name in shapes[0]}


def placed(batches: Sequence[Features], updates: int, place: Callable[[Features, bool], PyTree]) -> list[Call]:
    """Returns the calls that the batches need: one for all, or one each.

    Args:
        batches: of consecutive updates.
        updates: how many updates one call is to make; fewer batches, or batches of different shapes, take calls of one.
        place: from a batch, and whether it has the dimension `[updates]` first, to the arrays that a program takes.
    """
    together = stacked(batches) if len(batches) == updates > 1 else None
    if together is not None:
        return [Call(place(together, True), updates)]
    return [Call(place(batch, False), 1) for batch in batches]
