"""Going back: a run that diverged goes on from its last good checkpoint, past the batches that it diverged on.

Chowdhery et al. 2022, arXiv:2204.02311, section 5.1, restarted from about 100 steps before a spike of the loss and
skipped the batches around it, which did not come back. What was gone back over is part of the run: `rollbacks.jsonl`
in the workdir holds it, and a run that resumes reads it.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import NamedTuple

from lmjax.errors import ConfigMismatchError

_FILE = "rollbacks.jsonl"
# A run that goes back more often than this has another fault than its batches.
MOST = 10


class Rollback(NamedTuple):
    """One return.

    Attributes:
        to: updates of the checkpoint that the run went on from; 0: from its beginning.
        at: updates that had been tried.
    """

    to: int
    at: int


class Rollbacks:
    """The returns of a run so far."""

    def __init__(self, workdir: pathlib.Path):
        """Reads those of a workdir; raises ConfigMismatchError where the file is damaged."""
        self._path = workdir / _FILE
        self._rollbacks: list[Rollback] = []
        try:
            lines = self._path.read_text().splitlines() if self._path.exists() else []
            self._rollbacks = [Rollback(int(x["to"]), int(x["at"])) for x in map(json.loads, lines)]
        except (ValueError, KeyError, TypeError, OSError) as e:
            raise ConfigMismatchError(
                f"{self._path}: cannot be read ({e}); without it the run's batches are not known. Restore it from a "
                "copy, or start over in another --workdir"
            ) from e

    def __len__(self) -> int:
        return len(self._rollbacks)

    def skipped(self, step: int) -> int:
        """Returns how many batches the updates after `step` of them have been moved on."""
        return sum(r.at - r.to for r in self._rollbacks if r.to <= step)

    def add(self, rollback: Rollback) -> None:
        """Notes a return, on disk once this returns."""
        self._rollbacks.append(rollback)
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w") as file:
            file.writelines(json.dumps(r._asdict()) + "\n" for r in self._rollbacks)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
