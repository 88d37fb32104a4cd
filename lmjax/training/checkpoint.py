"""Checkpoints in a workdir: saved asynchronously with a manifest; the newest few, the best and the last good one stay.

A save writes to `checkpoints/N.partial`: first orbax writes the arrays, then the manifest is written, then all files
are synced to disk, and only then is the folder renamed to `checkpoints/N`. So an interruption leaves all earlier
checkpoints complete. A checkpoint is renamed to `N.deleting` before its files are removed, so that no incomplete folder
has the name of a step.

Only one save runs at a time, and the next one waits for it. A killed run therefore loses at most the steps since the
newest checkpoint was due, and one more interval if the save of that checkpoint was still running.
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
from lmjax.paths import remove_folder, sync_folder
from lmjax.schema import Schema
from lmjax.training import manifest
from lmjax.training.tensorstore_patches import apply_patches

PyTree = Any
_FOLDER = "checkpoints"
_PARTIAL, _DELETING = ".partial", ".deleting"
# Suffixes of folders that a killed save or removal leaves behind; the last is orbax's own temporary folder.
_TEMPORARY = (_PARTIAL, _DELETING, ".orbax-checkpoint-tmp")
# Folders are created in the call of the save, so that an error there is raised by that call, and not in a coroutine.
_FOLDERS_AT_ONCE = ocp.options.AsyncOptions(create_directories_asynchronously=False)
# Orbax 0.12 lets each replica write a part of an array, and compiles a program for each part of each shape. For arrays
# below 1 MiB this took most of the first save (of a nano model on 8 CPU devices: 156 programs, 4 s), so one replica
# writes them whole. To remove this, drop the option from `save` and time the first save again.
_SMALL_ARRAYS_WHOLE = ocp.options.ArrayOptions(
    saving=ocp.options.ArrayOptions.Saving(min_slice_bytes_for_replica_parallel=2**20)
)


class CheckpointConfig(Schema):
    """When checkpoints are written, and how many stay on disk."""

    every: int = Field(500, ge=0, description="steps between checkpoints; 0: at the end only")
    keep: int = Field(2, ge=1, description="newest checkpoints to keep, besides the best and the last good one")


class SavedCheckpoints:
    """The checkpoints of a workdir, read-only; safe while a run writes to the workdir."""

    def __init__(self, workdir: pathlib.Path):
        """Opens a workdir, which may have no checkpoints."""
        self._path = (workdir / _FOLDER).absolute()
        self._unreadable: set[int] = set()
        logging.get_absl_logger().addFilter(_not_from_orbax)

    @property
    def steps(self) -> list[int]:
        """Returns the steps that have a complete checkpoint, in order."""
        return saved_steps(self._path.parent)

    def restore(self, abstract: PyTree, step: int | None = None) -> PyTree | None:
        """Returns the newest state that can be read, or None if there is no checkpoint.

        Args:
            abstract: shapes, dtypes and shardings of the state.
            step: the only checkpoint to read; None: the newest.

        Raises:
            CheckpointError: none of the checkpoints can be read; a run must not start over without a message.
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
                # The run that trains there has removed it in the meantime, and has a newer one.
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
        """Returns the state of a step, or None and why it cannot be read; all processes agree whether it can."""
        folder, shares = self._folder(step), (jax.process_index(), jax.process_count())
        found, verified = manifest.problems(folder, *shares), manifest.has_manifest(folder)
        if not _all_agree(not found):
            return None, "; ".join(found[:3]) or "another process found it damaged"
        if not verified:
            logging.warning("%s: has no manifest, as an earlier version wrote it; its bytes cannot be verified", folder)
        state, failure = None, None
        try:
            state = ocp.load_checkpointables(folder, {"state": abstract})["state"]
        except Exception as e:
            # A damaged file can raise any error, and the checkpoint before may still be complete.
            failure = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"
        if not _all_agree(failure is None):
            return None, failure or "another process could not read it"
        return state, None


class Checkpoints(SavedCheckpoints):
    """The checkpoints of the one run that writes to a workdir. A context manager that waits for the last save at exit.

    The best checkpoint is the one whose evaluation has the least cost. Costs are kept by step and not saved with the
    arrays, because a step that is saved when the run is asked to stop is only evaluated after the run resumes.
    """

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig, on_saved: Callable[[int], None] | None = None):
        """Opens `workdir/checkpoints`, and removes what a killed save has left there.

        Args:
            workdir: the run's workdir.
            config: how many checkpoints stay.
            on_saved: called with a step once its checkpoint is on disk, in the thread that saves.

        Raises:
            SaveError: the folder cannot be written to.
        """
        super().__init__(workdir)
        apply_patches()
        self._keep, self._on_saved = config.keep, on_saved
        self._costs: dict[int, float] = {}
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
            # A failed save must not hide the error that ended the run.
            if error is None:
                raise
            logging.error("%s", e)
        finally:
            self._thread.shutdown()

    @property
    def steps(self) -> list[int]:
        """Returns the steps that have a complete checkpoint, in order."""
        return list(self._steps)

    @property
    def best_step(self) -> int | None:
        """Returns the step with the least cost among the evaluated checkpoints, or None if there is none."""
        return self._best(self._steps)

    def _best(self, steps: Iterable[int]) -> int | None:
        scored = [(self._costs[step], step) for step in steps if math.isfinite(self._costs.get(step, math.nan))]
        return min(scored)[1] if scored else None

    def evaluated(self, step: int) -> bool:
        """Returns whether the cost of a step is known."""
        return step in self._costs

    def note(self, step: int, cost: float) -> None:
        """Records the cost of a step (lower is better: `Followed`), whether the step is saved or not."""
        self._costs[step] = cost

    def save(self, step: int, state: PyTree, *, good: bool = True) -> None:
        """Starts to save the state, and returns once its arrays may be donated. Waits for the save before it.

        Args:
            step: the number of the checkpoint; one that exists is not written again unless it could not be read.
            state: the pytree to save.
            good: whether the latest loss and update are finite; the last good checkpoint stays, however many follow.

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
        # Which checkpoints stay is decided here and not in the thread, so that all processes use the same costs.
        self._good = self._good | {step} if good else self._good - {step}
        self._unreadable.discard(step)
        kept = self._kept(sorted({*self._steps, step}))
        self._number += 1
        self._saving = step, self._thread.submit(self._commit, step, partial, response, kept, self._number)

    def good_step(self, before: int) -> int:
        """Returns the newest good checkpoint's step before `before`, or 0 if there is none; waits for the last save."""
        self.wait()
        return max((step for step in self._steps if step in self._good and step < before), default=0)

    def check(self) -> None:
        """Raises SaveError if the running save has failed; does not wait for it."""
        if self._saving is not None and self._saving[1].done():
            self.wait()

    def wait(self) -> None:
        """Waits until the running save is on disk; raises SaveError if it failed."""
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
        return SaveError(f"{message}; make room or repair the disk, then run the command again")

    def _kept(self, steps: list[int]) -> set[int]:
        """Returns the steps that stay: the newest, the best, the last good one, and those that could not be read.

        A step that could not be read does not count as one of the newest, and stays so that the user can inspect it.
        """
        whole = [step for step in steps if step not in self._unreadable]
        good = [step for step in whole if step in self._good]
        best = self._best(whole)
        return {*whole[-self._keep :], *good[-1:], *({best} if best is not None else ()), *(set(steps) - set(whole))}

    def _commit(self, step: int, partial: pathlib.Path, response: Any, kept: set[int], number: int) -> None:
        """Waits for orbax, writes the manifest, renames the checkpoint, and removes the checkpoints not in `kept`."""
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
    """Returns the steps that have a complete checkpoint in a workdir, in order."""
    folder = workdir / _FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def checkpoint_folder(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Returns the folder of the checkpoint of a step."""
    return workdir / _FOLDER / str(step)


def temporaries(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders that killed saves and removals have left in a workdir, or that running ones use."""
    folder = workdir / _FOLDER
    return sorted(p for p in folder.iterdir() if p.name.endswith(_TEMPORARY)) if folder.is_dir() else []


def remove_temporaries(workdir: pathlib.Path) -> None:
    """Removes the folders that killed saves and removals have left; only for the process that writes to the workdir."""
    for path in temporaries(workdir):
        remove_folder(path)


def remove_steps(workdir: pathlib.Path, after: int) -> None:
    """Removes the checkpoints of steps after `after`; only for the process that writes to the workdir."""
    for step in saved_steps(workdir):
        if step > after:
            _remove(checkpoint_folder(workdir, step))


def _remove(folder: pathlib.Path) -> None:
    """Removes a checkpoint: renames it first, so that it disappears at once, and then deletes its files."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}{_DELETING}")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _reason(error: Exception) -> str:
    """Returns the last line of an error, because orbax passes on whole tracebacks of its threads as text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _not_from_orbax(record: stdlib_logging.LogRecord) -> bool:
    """Returns False for orbax's log records: its threads log the traceback of an error that is raised here anyway."""
    return "orbax" not in record.pathname


def _all_agree(mine: bool) -> bool:
    """Returns whether `mine` is true in all processes."""
    return mine if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(mine)).all())


def _meet(name: str) -> None:
    """Waits until all processes call this with the same name; without collectives, so a thread may call it."""
    if jax.process_count() > 1:
        asyncio.run(ocp.multihost.sync_global_processes(name, operation_id="lmjax"))
