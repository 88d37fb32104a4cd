"""Checkpoints in a workdir: asynchronous, each with a manifest, the newest few, the best one and the last good one.

A save goes to `checkpoints/N.partial`: orbax writes the arrays, then the manifest is written, all of it is brought onto
the disk, and only then is the folder renamed to `checkpoints/N`. Whatever interrupts this leaves the checkpoints before
it whole. A checkpoint that is not kept is renamed to `N.deleting` first, so that no half of it has the name of a step.

One save is under way at a time: the next one waits for it. A killed run therefore loses at most the steps since the
newest checkpoint was due, plus one interval if that checkpoint's save was still under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging as stdlib_logging
import math
import pathlib
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp
from pydantic import Field

from lmjax.errors import CheckpointError, SaveError
from lmjax.paths import sync_folder
from lmjax.schema import Schema
from lmjax.training import manifest

PyTree = Any
_FOLDER = "checkpoints"
_PARTIAL, _DELETING = ".partial", ".deleting"
# What a killed save or a killed removal leaves; the last is of orbax, which writes to a folder of its own first.
_TEMPORARY = (_PARTIAL, _DELETING, ".orbax-checkpoint-tmp")
# A folder that cannot be made is an error of the save itself, and leaves no coroutine that nothing awaits.
_FOLDERS_AT_ONCE = ocp.options.AsyncOptions(create_directories_asynchronously=False)
# Orbax 0.12 lets each replica write a part of an array, and compiles a program for each part of each shape: for arrays
# under 1 MiB that took most of the first save (156 programs, 4 s of a CPU, of a nano model on 8 devices).
_SMALL_ARRAYS_WHOLE = ocp.options.ArrayOptions(
    saving=ocp.options.ArrayOptions.Saving(min_slice_bytes_for_replica_parallel=2**20)
)


class CheckpointConfig(Schema):
    """When checkpoints are written and which are kept."""

    every: int = Field(500, ge=0, description="steps between checkpoints; 0: at the end only")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept, beside the best and the last good one")


class SavedCheckpoints:
    """The checkpoints of a workdir, to read: nothing there is changed, also while a run writes to it."""

    def __init__(self, workdir: pathlib.Path):
        """Takes the workdir; a folder without checkpoints has none."""
        self._path = (workdir / _FOLDER).absolute()
        self._unreadable: set[int] = set()
        logging.get_absl_logger().addFilter(_not_from_orbax)

    @property
    def steps(self) -> list[int]:
        """Returns the steps that have a whole checkpoint, in order."""
        return saved_steps(self._path.parent)

    def restore(self, abstract: PyTree, step: int | None = None) -> PyTree | None:
        """Returns the newest state that can be read, or None if there is no checkpoint at all.

        Args:
            abstract: shapes, dtypes and shardings of the state.
            step: read this checkpoint and no other.

        Raises:
            CheckpointError: there are checkpoints, and none can be read: a run never starts over in silence.
        """
        steps = self.steps
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"--step={step}: {self._path} has no such checkpoint; there are {there}")
        left = steps if step is None else [step]
        failures: dict[int, str] = {}
        while left:
            candidate = max(left)
            state, failure = self._read(candidate, abstract)
            if failure is None:
                return state
            if step is None and not self._folder(candidate).exists():
                # A run that trains there has removed it since, and has a newer one.
                left = [s for s in saved_steps(self._path.parent) if s not in failures]
                continue
            left = [s for s in left if s < candidate]
            self._unreadable.add(candidate)
            failures[candidate] = f"step {candidate}: {failure}"
            before = f"; trying step {max(left)}" if left else ""
            logging.error("%s: cannot read %s%s", self._path, failures[candidate], before)
        if failures:
            raise CheckpointError(
                f"{self._path}: no checkpoint can be read ({'; '.join(failures.values())}); "
                "restore one from a copy, or start over in another --workdir"
            )
        return None

    def _folder(self, step: int) -> pathlib.Path:
        return self._path / str(step)

    def _read(self, step: int, abstract: PyTree) -> tuple[PyTree | None, str | None]:
        """Returns the state of a step, or why it cannot be read; all processes come to the same."""
        folder, shares = self._folder(step), (jax.process_index(), jax.process_count())
        found, verified = manifest.problems(folder, *shares), manifest.has_manifest(folder)
        if not _all_agree(not found):
            return None, "; ".join(found[:3]) or "another process found it damaged"
        if not verified:
            logging.warning("%s: is of a version that wrote no manifest; its bytes cannot be verified", folder)
        state, failure = None, None
        try:
            state = ocp.load_checkpointables(folder, {"state": abstract})["state"]
        except Exception as e:
            # Whatever breaks inside a damaged file, the checkpoint before it may still be whole.
            failure = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"
        if not _all_agree(failure is None):
            return None, failure or "another process could not read it"
        return state, None


class Checkpoints(SavedCheckpoints):
    """The checkpoints of the one run that writes to a workdir. A context manager: leaving it waits for the last save.

    The best one is that with the least held-out loss. Losses are noted by step and not stored beside the arrays: a step
    that was saved when the run was asked to stop is evaluated only after the run goes on.
    """

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig, on_saved: Callable[[int], None] | None = None):
        """Opens `workdir/checkpoints`, and clears away what a killed save has left there.

        Args:
            workdir: of the run.
            config: how many are kept.
            on_saved: called with a step once its checkpoint is on the disk, in the thread that saves.

        Raises:
            SaveError: the folder cannot be written to.
        """
        super().__init__(workdir)
        self._keep, self._on_saved = config.keep, on_saved
        self._losses: dict[int, float] = {}
        self._number = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: tuple[int, Future[None]] | None = None
        try:
            if jax.process_index() == 0:
                self._path.mkdir(parents=True, exist_ok=True)
                sync_folder(workdir)
                remove_temporaries(workdir)
        except OSError as e:
            raise SaveError(f"{self._path}: checkpoints could not be saved there: {e.strerror}; make room") from e
        self._steps = super().steps
        self._good = {step for step in self._steps if manifest.noted(self._folder(step)).get("good", True)}

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except SaveError as e:
            # An error on the way out must not hide the one that ended the run.
            if error is None:
                raise
            logging.error("%s", e)
        finally:
            self._thread.shutdown()

    @property
    def steps(self) -> list[int]:
        """Returns the steps that have a whole checkpoint, in order."""
        return list(self._steps)

    @property
    def best_step(self) -> int | None:
        """Returns the step with the least loss among the checkpoints that were evaluated; None: there is none."""
        return self._best(self._steps)

    def _best(self, steps: Iterable[int]) -> int | None:
        scored = [(self._losses[step], step) for step in steps if math.isfinite(self._losses.get(step, math.nan))]
        return min(scored)[1] if scored else None

    def evaluated(self, step: int) -> bool:
        """Returns whether the loss of a step was noted."""
        return step in self._losses

    def note(self, step: int, loss: float) -> None:
        """Notes the held-out loss of a step, saved or not."""
        self._losses[step] = loss

    def save(self, step: int, state: PyTree, *, good: bool = True) -> None:
        """Starts writing the state; returns once it may be donated again. Waits for the save before it.

        Args:
            step: the number of the checkpoint; one that exists already is left alone, unless it could not be read.
            state: the pytree to write.
            good: whether the run is sound at this step; the last good checkpoint stays, however many follow.

        Raises:
            SaveError: this checkpoint, or the one before it, cannot be written.
        """
        self.wait()
        if step in self._steps and step not in self._unreadable:
            return
        note = {"lmjax": {"manifest": True, "good": good}}
        partial = self._path / f"{step}{_PARTIAL}"
        try:
            with ocp.Context(async_options=_FOLDERS_AT_ONCE, array_options=_SMALL_ARRAYS_WHOLE):
                response = ocp.save_checkpointables_async(partial, {"state": state}, custom_metadata=note)
        except Exception as e:
            raise self._error(step, e) from e
        # Decided here and not in the thread, so that all processes decide by the same losses.
        self._good = self._good | {step} if good else self._good - {step}
        self._unreadable.discard(step)
        kept = self._kept(sorted({*self._steps, step}))
        self._number += 1
        self._saving = step, self._thread.submit(self._commit, step, partial, response, kept, self._number)

    def good_step(self, before: int) -> int:
        """Returns the newest step before `before` that was saved while the run was sound; 0: there is none."""
        self.wait()
        return max((step for step in self._steps if step in self._good and step < before), default=0)

    def check(self) -> None:
        """Raises SaveError if the save under way has failed; does not wait for it."""
        if self._saving is not None and self._saving[1].done():
            self.wait()

    def wait(self) -> None:
        """Waits until what is being written is on disk; raises SaveError if it could not be."""
        if self._saving is None:
            return
        (step, future), self._saving = self._saving, None
        try:
            future.result()
        except Exception as e:
            raise self._error(step, e) from e

    def _error(self, step: int, error: Exception) -> SaveError:
        message = f"{self._path}: step {step} could not be saved: {_reason(error)}"
        with contextlib.suppress(OSError):
            message += f" ({shutil.disk_usage(self._path.parent).free:,} bytes are free there)"
        return SaveError(f"{message}; make room or mend the disk, then run the command again")

    def _kept(self, steps: list[int]) -> set[int]:
        """Returns which steps stay: the newest, the best, the last good one, and those that could not be read.

        A step that could not be read does not count as one of the newest, and is left for whoever looks into it.
        """
        whole = [step for step in steps if step not in self._unreadable]
        good = [step for step in whole if step in self._good]
        best = self._best(whole)
        return {*whole[-self._keep :], *good[-1:], *({best} if best is not None else ()), *(set(steps) - set(whole))}

    def _commit(self, step: int, partial: pathlib.Path, response: Any, kept: set[int], number: int) -> None:
        """Waits for orbax, writes the manifest, gives the checkpoint its name, and removes those that are not kept."""
        process, processes = jax.process_index(), jax.process_count()
        response.result()
        manifest.write(partial, process, processes)
        _meet(f"lmjax_manifest_{number}")
        if process == 0:
            manifest.merge(partial, processes)
            _remove(self._folder(step))
            partial.rename(self._folder(step))
            sync_folder(self._path)
            if self._on_saved is not None:
                self._on_saved(step)
            for old in set(self._steps) - kept:
                try:
                    _remove(self._folder(old))
                except OSError as e:
                    logging.warning("%s: cannot be removed: %s", self._folder(old), e.strerror)
        _meet(f"lmjax_commit_{number}")
        self._steps = sorted(kept)


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps that have a whole checkpoint in a workdir, in order."""
    folder = workdir / _FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def checkpoint_folder(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Returns the folder of the checkpoint of a step."""
    return workdir / _FOLDER / str(step)


def temporaries(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns what killed saves and removals have left in a workdir, or what is at work there now."""
    folder = workdir / _FOLDER
    return sorted(p for p in folder.iterdir() if p.name.endswith(_TEMPORARY)) if folder.is_dir() else []


def remove_temporaries(workdir: pathlib.Path) -> None:
    """Removes what killed saves and removals have left; only for the one process that writes to the workdir."""
    for path in temporaries(workdir):
        shutil.rmtree(path)


def remove_steps(workdir: pathlib.Path, after: int) -> None:
    """Removes the checkpoints of later steps than `after`; only for the one process that writes to the workdir."""
    for step in saved_steps(workdir):
        if step > after:
            _remove(checkpoint_folder(workdir, step))


def _remove(folder: pathlib.Path) -> None:
    """Removes a checkpoint: at once for whoever lists them, then file by file."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}{_DELETING}")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _reason(error: Exception) -> str:
    """Returns the last line of an error: orbax hands on whole tracebacks of its threads as text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _not_from_orbax(record: stdlib_logging.LogRecord) -> bool:
    """Drops orbax's log: its threads log the whole traceback of an error that is raised here as one message."""
    return "orbax" not in record.pathname


def _all_agree(mine: bool) -> bool:
    """Returns whether all processes say yes."""
    return mine if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(mine)).all())


def _meet(name: str) -> None:
    """Waits until all processes are here; in a thread, where no collective of devices may be started."""
    if jax.process_count() > 1:
        asyncio.run(ocp.multihost.sync_global_processes(name, operation_id="lmjax"))
