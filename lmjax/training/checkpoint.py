"""Checkpoints in a workdir: asynchronous, the newest few and the best one, written and read by orbax."""

from __future__ import annotations

import logging as stdlib_logging
import math
import pathlib
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from absl import logging
from orbax.checkpoint import v1 as ocp
from pydantic import Field

from lmjax.errors import CheckpointError, SaveError
from lmjax.schema import Schema

PyTree = Any
_KEEP = ocp.training.preservation_policies


class CheckpointConfig(Schema):
    """When checkpoints are written and which are kept."""

    every: int = Field(500, ge=0, description="steps between checkpoints; 0: at the end only")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept, beside the best one")


def _reason(error: Exception) -> str:
    """Returns the last line of an error: orbax hands on whole tracebacks of its threads as text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _not_from_orbax(record: stdlib_logging.LogRecord) -> bool:
    """Drops orbax's log: its threads log the whole traceback of an error that is raised here as one message."""
    return "orbax" not in record.pathname


class Checkpoints:
    """The checkpoints of one workdir. A context manager: leaving it waits for what is being written.

    The best one is that with the least held-out loss. Losses are noted by step and not stored beside the arrays: a step
    that was saved when the run was asked to stop is evaluated only after the run goes on.
    """

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig):
        """Opens `workdir/checkpoints`, and clears away what a killed save has left there."""
        self._path = (workdir / "checkpoints").absolute()
        self._unreadable: set[int] = set()
        self._losses: dict[int, float] = {}
        logging.get_absl_logger().addFilter(_not_from_orbax)
        try:
            self._checkpointer = ocp.training.Checkpointer(
                self._path,
                preservation_policy=_KEEP.AnyPreservationPolicy([_KEEP.LatestN(config.keep), self]),
                cleanup_tmp_directories=True,
            )
        except OSError as e:
            raise SaveError(f"--workdir={workdir}: cannot be written to: {e}") from e

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._checkpointer.close()
        except Exception as e:
            # An error on the way out must not hide the one that ended the run.
            if error is None:
                raise SaveError(f"{self._path}: the last checkpoint could not be written: {_reason(e)}") from e
            logging.error("%s: the last checkpoint could not be written: %s", self._path, _reason(e))

    @property
    def steps(self) -> list[int]:
        """Returns the steps that have a whole checkpoint, in order."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    @property
    def best_step(self) -> int | None:
        """Returns the step with the least loss among the checkpoints that were evaluated; None: there is none."""
        return self._best(self.steps)

    def _best(self, steps: Iterable[int]) -> int | None:
        scored = [(self._losses[step], step) for step in steps if math.isfinite(self._losses.get(step, math.nan))]
        return min(scored)[1] if scored else None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns which checkpoints are kept for their loss: the best one. Orbax asks, as of a policy of its own."""
        del context
        best = self._best(c.step for c in checkpoints)
        return [c.step == best for c in checkpoints]

    def evaluated(self, step: int) -> bool:
        """Returns whether the loss of a step was noted."""
        return step in self._losses

    def note(self, step: int, loss: float) -> None:
        """Notes the held-out loss of a step, saved or not."""
        self._losses[step] = loss

    def save(self, step: int, state: PyTree) -> None:
        """Starts writing the state; returns once it may be donated again.

        Args:
            step: the number of the checkpoint; one that exists already is left alone, unless it could not be read.
            state: the pytree to write.

        Raises:
            SaveError: this checkpoint, or the one before it, cannot be written.
        """
        broken = step in self._unreadable
        if step in self.steps and not broken:
            return
        try:
            self._checkpointer.save_checkpointables_async(step, {"state": state}, force=True, overwrite=broken)
        except Exception as e:
            raise SaveError(
                f"{self._path}: step {step} could not be saved: {_reason(e)}; make room or mend the disk"
            ) from e

    def wait(self) -> None:
        """Waits until what is being written is on disk; raises SaveError if it could not be."""
        try:
            self._checkpointer.wait()
        except Exception as e:
            raise SaveError(f"{self._path}: could not be saved: {_reason(e)}; make room or mend the disk") from e

    def restore(self, abstract: PyTree, step: int | None = None) -> PyTree | None:
        """Returns the newest state that can be read, or None if there is no checkpoint at all.

        Args:
            abstract: shapes, dtypes and shardings of the state.
            step: read this checkpoint and no other.

        Raises:
            CheckpointError: there are checkpoints, and none can be read: a run never starts over in silence.
        """
        if step is not None and step not in self.steps:
            there = ", ".join(map(str, self.steps)) or "none"
            raise CheckpointError(f"--step={step}: {self._path} has no such checkpoint; there are {there}")
        wanted = self.steps[::-1] if step is None else [step]
        failures = []
        for candidate in wanted:
            try:
                return self._checkpointer.load_checkpointables(candidate, {"state": abstract})["state"]
            except Exception as e:
                # Whatever breaks inside a damaged file, the checkpoint before it may still be whole.
                self._unreadable.add(candidate)
                failures.append(f"step {candidate}: {type(e).__name__}: {str(e).splitlines()[0][:200]}")
                logging.error("%s: cannot read %s", self._path, failures[-1])
        if failures:
            raise CheckpointError(
                f"{self._path}: no checkpoint can be read ({'; '.join(failures)}); "
                "restore one from a copy, or start over in another --workdir"
            )
        return None
