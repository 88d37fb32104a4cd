"""Stages: a run that begins with smaller batches or shorter rows.

Growing batches: Smith et al. 2018, arXiv:1711.00489, section 3; short rows first: Li et al. 2022, arXiv:2108.06084,
section 4. A stage has its own packing and its own compiled step, and counts its positions in the data from its own
beginning.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Annotated, Any, Self

import jax
import numpy as np
from pydantic import Field, model_validator

from lmjax.data.pipeline import Batches, example_stream
from lmjax.objectives.task import Examples, Task
from lmjax.schema import Schema
from lmjax.streams import random_stream


class StagesConfig(Schema):
    """What comes before the run's own batch size and length: entry i of every tuple holds before step `until[i]`."""

    until: tuple[Annotated[int, Field(ge=1)], ...] = Field((), description="steps at which the stages end, rising")
    batch_size: tuple[Annotated[int, Field(ge=1)], ...] = Field((), description="of each stage; empty: the run's own")
    length: tuple[Annotated[int, Field(ge=8)], ...] = Field((), description="of each stage; empty: the task's own")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if list(self.until) != sorted(set(self.until)):
            raise ValueError(f"until={self.until} must rise")
        for name in ("batch_size", "length"):
            if len(getattr(self, name)) not in (0, len(self.until)):
                raise ValueError(f"{name}={getattr(self, name)} must have an entry for each of until={self.until}")
        return self

    def spans(self, batch_size: int, length: int) -> list[tuple[int, int | None, int, int]]:
        """Returns (first step, step after the last or None, batch size, length) of every stage; the last is own."""
        begins, ends = (0, *self.until), (*self.until, None)
        sizes, lengths = (
            (*(own or (default,) * len(self.until)), default)
            for own, default in ((self.batch_size, batch_size), (self.length, length))
        )
        return list(zip(begins, ends, sizes, lengths, strict=True))


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        begin: updates before it.
        end: updates after it, or None: it is the last.
        batch_size: rows of a step.
        seed: of the order of its rows and their corruption.
        task: the objectives, at this stage's length.
        examples: its rows.
    """

    begin: int
    end: int | None
    batch_size: int
    seed: int
    task: Task
    examples: Examples

    def local_batch(self) -> dict[str, np.ndarray]:
        """Returns a batch of this process's size, to compile with."""
        row = self.examples(0, random_stream(0, "sample batch"))
        rows = self.batch_size // jax.process_count()
        return {name: np.broadcast_to(x, (rows, *np.shape(x))) for name, x in row.items()}

    def fill(self, rows: int = 64) -> dict[str, float]:
        """Returns the share of places that hold a token, of the first `rows` rows, by side; "" is that of all sides."""
        tokens: collections.Counter[str] = collections.Counter()
        places: collections.Counter[str] = collections.Counter()
        for position in range(rows):
            epoch, row = self.examples.mixture.row(position, self.seed)
            for name, array in self.examples(row, example_stream(self.seed, epoch, row)).items():
                side = name.removesuffix("segment_ids").rstrip("_")
                for key in {"", side} if name.endswith("segment_ids") else ():
                    tokens[key] += int((array > 0).sum())
                    places[key] += array.size
        return {side: tokens[side] / places[side] for side in places}


@dataclasses.dataclass(frozen=True)
class OpenStage:
    """A stage under way.

    Attributes:
        end: updates after it, or None.
        step: the compiled training step.
        place: puts a batch of this process's rows where the step wants it.
        batches: this process's part of every batch, from the coming step on.
        flops_per_step: model FLOPs of one step.
    """

    end: int | None
    step: Callable[..., Any]
    place: Callable[[dict[str, np.ndarray]], Any]
    batches: Batches
    flops_per_step: float


class Course:
    """The stages of a run one after the other, each opened when it is reached. A context manager."""

    def __init__(
        self, stages: Sequence[Stage], start: Callable[[Stage, int], OpenStage], skipped: Callable[[int], int]
    ):
        """Takes the stages, what opens one at a step of the run, and how many batches were skipped by a step."""
        self._stages, self._start, self._skipped = stages, start, skipped
        self._open: OpenStage | None = None

    def __enter__(self) -> Course:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.batches.close()
            self._open = None

    def changes(self, step: int) -> bool:
        """Returns whether the update after `step` of them opens a stage."""
        return self._open is None or (self._open.end is not None and step >= self._open.end)

    def epochs(self, step: int) -> dict[str, float]:
        """Returns by name how often each set of data has been read through in the first `step` updates."""
        total: dict[str, float] = {}
        for stage in self._stages:
            last = min(step, stage.end or step)
            updates = last - stage.begin + self._skipped(last)
            if last > stage.begin:
                for name, epochs in stage.examples.epochs(updates * stage.batch_size, stage.seed).items():
                    total[name] = total.get(name, 0.0) + epochs
        return total

    def at(self, step: int) -> OpenStage:
        """Returns the stage of the update after `step` of them, opened if need be."""
        if self.changes(step):
            self._close()
            stage = next(s for s in self._stages if s.end is None or step < s.end)
            self._open = self._start(stage, step)
        return self._open
