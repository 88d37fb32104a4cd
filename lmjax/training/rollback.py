"""Rollbacks: a run that diverged continues from its last good checkpoint and skips the batches it diverged on.

Chowdhery et al. 2022, arXiv:2204.02311, section 5.1, restarted about 100 steps before a spike of the loss and skipped
the batches around it; the spike did not occur again. `rollbacks.jsonl` in the workdir records every rollback, because
a resumed run needs them to find its batches.
"""

from __future__ import annotations

import json
import pathlib
from typing import NamedTuple

from lmjax.errors import ConfigMismatchError
from lmjax.paths import read_regular, write_durably

_FILE = "rollbacks.jsonl"
# The most rollbacks of a run; if it diverges more often, the batches are not the cause.
MOST = 10


class Rollback(NamedTuple):
    """One rollback.

    Attributes:
        to: the step of the checkpoint that the run continued from; 0: its beginning.
        at: the step at which it diverged.
    """

    to: int
    at: int


class Rollbacks:
    """The rollbacks of a run so far."""

    def __init__(self, workdir: pathlib.Path):
        """Reads the rollbacks of a workdir; raises ConfigMismatchError if their file is damaged."""
        self._path = workdir / _FILE
        self._rollbacks: list[Rollback] = []
        try:
            lines = read_regular(self._path).decode().splitlines() if self._path.exists() else []
            self._rollbacks = [Rollback(int(x["to"]), int(x["at"])) for x in map(json.loads, lines)]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, OSError) as e:
            raise ConfigMismatchError(
                f"{self._path}: cannot be read ({e}); without it the run's batches are not known. Restore it from a "
                "copy, or start over in another --workdir"
            ) from e

    def __len__(self) -> int:
        return len(self._rollbacks)

    def skipped(self, step: int) -> int:
        """Returns how many batches the updates after `step` skip."""
        return sum(r.at - r.to for r in self._rollbacks if r.to <= step)

    def add(self, rollback: Rollback) -> None:
        """Adds a rollback and writes it to disk before it returns."""
        self._rollbacks.append(rollback)
        write_durably(self._path, "".join(json.dumps(r._asdict()) + "\n" for r in self._rollbacks))
