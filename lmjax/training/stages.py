"""Stages of a run: the first ones can have smaller batches or shorter rows.

Growing batches: Smith et al. 2018, arXiv:1711.00489, section 3; short rows first: Li et al. 2022, arXiv:2108.06084,
section 4. Each stage has its own packing and its own compiled step, and its data position starts at 0.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Annotated, Any, NamedTuple, Self

import jax
import numpy as np
from pydantic import Field, model_validator

from lmjax.data.pipeline import Features, example_stream
from lmjax.data.unpadding import Layout, choose_layout, size_of
from lmjax.objectives.task import Examples, Task
from lmjax.schema import Schema
from lmjax.streams import random_stream
from lmjax.training.calls import Call, Reader, placed

# Rows whose lengths decide on the layout of a stage.
_SAMPLE = 1024


class StagesConfig(Schema):
    """Batch sizes and lengths before the run's own ones: entry i of every tuple applies before step `until[i]`."""

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
        """Returns (first step, step after the last or None, batch size, length) of every stage.

        Args:
            batch_size: the run's own, which the last stage has.
            length: the task's own, which the last stage has.
        """
        begins, ends = (0, *self.until), (*self.until, None)
        sizes, lengths = (
            (*(own or (default,) * len(self.until)), default)
            for own, default in ((self.batch_size, batch_size), (self.length, length))
        )
        return list(zip(begins, ends, sizes, lengths, strict=True))


class Unpadded(NamedTuple):
    """What limits packed rows: the `microbatches` of a step, and the positions of the `longest` row of the model."""

    microbatches: int
    longest: int


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        begin: number of updates before it.
        end: number of updates when it ends, or None for the last stage.
        batch_size: rows of a step.
        seed: the seed of the order of its rows and of their corruption.
        task: the objectives, at this stage's length.
        examples: its rows.
        unpadded: how rows may be packed for the layers; None: the layers read them as they are.
    """

    begin: int
    end: int | None
    batch_size: int
    seed: int
    task: Task
    examples: Examples
    unpadded: Unpadded | None = None

    def local_batch(self, size: int = 0) -> dict[str, np.ndarray]:
        """Returns a batch with this process's number of rows, for compilation.

        Args:
            size: the number of packed rows of a microbatch; 0: the rows are not packed.
        """
        row = self.examples(0, random_stream(0, "sample batch"))
        rows = self.batch_size // jax.process_count()
        batch = {name: np.broadcast_to(x, (rows, *np.shape(x))) for name, x in row.items()}
        return self.layout.of_size(batch, size) if size else batch

    @functools.cached_property
    def layout(self) -> Layout | None:
        """Returns how the rows of a batch are packed for the layers, or None if that is not done or saves little."""
        if self.unpadded is None:
            return None
        rows = (self.example(position)[-1] for position in range(min(_SAMPLE, len(self.examples))))
        found = [row["segment_ids"] for row in rows if "segment_ids" in row]
        if not found:
            return None
        tokens = np.array([np.count_nonzero(segments) for segments in found])
        return choose_layout(tokens, found[0].shape[0], self.batch_size, **self.unpadded._asdict())

    @property
    def usual_size(self) -> int:
        """Returns the number of packed rows of a microbatch that most batches have; 0 without a layout."""
        return self.layout.sizes[0] if self.layout else 0

    def example(self, position: int) -> tuple[int, int, Features]:
        """Returns the epoch, the row number and the features of the row at a position in the order of the data."""
        epoch, row = self.examples.mixture.row(position, self.seed)
        return epoch, row, self.examples(row, example_stream(self.seed, epoch, row))

    def fill(self, rows: int = 64) -> dict[str, float]:
        """Returns the share of positions that hold a token, over the first `rows` rows, by side; "" is all sides."""
        tokens: collections.Counter[str] = collections.Counter()
        places: collections.Counter[str] = collections.Counter()
        for position in range(rows):
            for name, array in self.example(position)[-1].items():
                side = name.removesuffix("segment_ids").rstrip("_")
                for key in {"", side} if name.endswith("segment_ids") else ():
                    tokens[key] += int((array > 0).sum())
                    places[key] += array.size
        return {side: tokens[side] / places[side] for side in places}


class Steps:
    """The compiled programs of a stage, by the size of a batch and the updates of a call, compiled when needed."""

    def __init__(
        self,
        compile_step: Callable[[int, int], Callable[..., Any]],
        stage: Stage,
        around: Callable[[], contextlib.AbstractContextManager[None]],
        updates: int = 1,
    ):
        """Compiles the program for batches of the usual size.

        Args:
            compile_step: from a number of packed rows of a microbatch (0: rows are not packed) and a number of updates
                to a compiled program.
            stage: the stage.
            around: a context for each compilation.
            updates: of the first call.
        """

        def compiled(size: int, updates: int) -> Callable[..., Any]:
            with around():
                return compile_step(size, updates)

        self._of = functools.cache(compiled)
        self._microbatches = stage.layout.microbatches if stage.layout else 1
        self._of(stage.usual_size, updates)

    def __call__(self, state: Any, call: Call, *rest: Any) -> Any:
        """Returns what the program for a call returns, given its batch and what else the program takes."""
        return self._of(size_of(call.batch, self._microbatches), call.updates)(state, call.batch, *rest)


@dataclasses.dataclass(frozen=True)
class OpenStage:
    """A stage that is running.

    Attributes:
        end: number of updates when it ends, or None for the last stage.
        step: makes the updates of a call.
        place: from this process's rows of a batch, and whether they have the dimension `[updates]` first, to the arrays
            that the step takes.
        batches: this process's part of every batch, from the next step on.
        flops_per_step: model FLOPs of one update.
    """

    end: int | None
    step: Callable[..., Any]
    place: Callable[[Features, bool], Any]
    batches: Reader
    flops_per_step: float

    def read(self, updates: int = 1) -> list[Call]:
        """Returns the next calls, of `updates` updates together; fewer if an error of the data follows."""
        return placed(self.batches.take(updates), updates, self.place)


class Course:
    """The stages of a run, each opened when the run reaches it. A context manager."""

    def __init__(
        self, stages: Sequence[Stage], start: Callable[[Stage, int], OpenStage], skipped: Callable[[int], int]
    ):
        """Makes a course; no stage is open yet.

        Args:
            stages: the stages in their order.
            start: opens a stage at a step of the run.
            skipped: from a step to the number of batches that rollbacks have skipped before it.
        """
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
        """Returns whether update `step + 1` opens a stage."""
        return self._open is None or (self._open.end is not None and step >= self._open.end)

    def epochs(self, step: int) -> dict[str, float]:
        """Returns the epochs of each data set that the first `step` updates have read, by name."""
        total: dict[str, float] = {}
        for stage in self._stages:
            last = min(step, stage.end or step)
            updates = last - stage.begin + self._skipped(last)
            if last > stage.begin:
                for name, epochs in stage.examples.epochs(updates * stage.batch_size, stage.seed).items():
                    total[name] = total.get(name, 0.0) + epochs
        return total

    def at(self, step: int) -> OpenStage:
        """Returns the stage of update `step + 1`, and opens it if it is not open."""
        if self.changes(step):
            self._close()
            stage = next(s for s in self._stages if s.end is None or step < s.end)
            self._open = self._start(stage, step)
        return self._open
