"""A workdir while a command writes to it: one writer, one config, and nothing left of a command that failed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
from types import TracebackType
from typing import TextIO

from lmjax.config import Config, difference, from_json
from lmjax.errors import ConfigMismatchError, FlagError
from lmjax.paths import is_free, is_litter, make_folders, remove_folders

# What makes a folder a run.
CONFIG = "config.json"
_LOCK = ".lock"

# What may differ when a workdir is used again: how long a run goes on and what is written down. It changes no step
# but through the schedule, which ends with the run.
MAY_CHANGE = (
    "steps",
    "minutes",
    "max_skipped",
    "on_divergence",
    "step_timeout",
    "evaluation.",
    "checkpoint.",
    "logging.",
    "data.workers",
    "data.worker_timeout",
    "data.prefetch",
    "data.cache_dir",
)


class Claim:
    """The right to write to a workdir, until it is closed or the process ends. A context manager.

    Without a config.json by then, nothing that the claim's holder wrote there stays.
    """

    def __init__(self, workdir: pathlib.Path, lock: TextIO, made: list[pathlib.Path], before: set[str]):
        """Takes the locked file, the folders that were made for it, and the names that were in the workdir before."""
        self._workdir, self._lock, self._made, self._before = workdir, lock, made, before

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the workdir."""
        if not (self._workdir / CONFIG).exists():
            with contextlib.suppress(OSError):
                for path in self._workdir.iterdir():
                    if path.name in self._before or is_litter(path.name):
                        continue
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)
            remove_folders(self._made)
        self._lock.close()


def is_unused(workdir: pathlib.Path) -> bool:
    """Whether a new run can begin there: it is free, or a command that was killed has left its lock alone."""
    if is_free(workdir):
        return True
    return workdir.is_dir() and all(path.name == _LOCK or is_litter(path.name) for path in workdir.iterdir())


def claim_workdir(workdir: pathlib.Path, config: Config) -> Claim:
    """Returns the claim on a workdir, made if need be; it is free again when the process ends.

    Raises:
        FlagError: another process writes there, or it is no run's workdir.
        ConfigMismatchError: it belongs to a run with another config.
    """
    known = workdir / CONFIG
    if known.exists():
        lines = difference(from_json(known), config, MAY_CHANGE)
        if lines:
            raise ConfigMismatchError(
                f"--workdir={workdir} belongs to another config: {'; '.join(lines[:5])}"
                f"{' ...' if len(lines) > 5 else ''}; use its config or another --workdir"
            )
    elif not is_unused(workdir):
        raise FlagError(f"--workdir={workdir} exists and holds no run of lmjax; choose another or empty it")
    made: list[pathlib.Path] = []
    try:
        made = make_folders(workdir)
        before = set(os.listdir(workdir)) - {_LOCK}
        lock = (workdir / _LOCK).open("w")
    except OSError as e:
        remove_folders(made)
        raise FlagError(f"--workdir={workdir}: cannot be written to: {e.strerror}; choose another") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        lock.close()
        raise FlagError(f"--workdir={workdir}: another process trains there; wait, or use another") from e
    except OSError:
        # Not every network file system has locks; one writer is then up to the user.
        pass
    return Claim(workdir, lock, made, before)
