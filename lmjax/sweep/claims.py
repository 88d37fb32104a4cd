"""Claims of runs: of the processes that work on one sweep, one trains each run."""

from __future__ import annotations

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator, Sequence
from typing import TextIO

from lmjax.errors import SaveError
from lmjax.sweep.ledger import Ledger, has_ended
from lmjax.sweep.targets import Target

_CLAIMS = "claims"


@contextlib.contextmanager
def claimed(ledger: Ledger, targets: Sequence[Target], since: str, most: int | None = None) -> Iterator[list[Target]]:
    """Gives the runs that this process may train while the context runs: no other process gets them meanwhile.

    A run's workdir is locked while it is trained, but its result is recorded later: between the two, another process
    would find it neither locked nor ended. So a claim is held until the result is there, and results are read after
    the claims were taken.

    Args:
        ledger: the record of the sweep.
        targets: the runs to choose from, which had not ended when the results were last read.
        since: as of `has_ended`.
        most: the most runs; None: all.

    Raises:
        SaveError: a claim cannot be written.
    """
    with contextlib.ExitStack() as held:
        free: list[Target] = []
        for target in targets:
            if len(free) == most:
                break
            if ledger.is_busy(target):
                continue
            if lock := _claim(ledger.directory / _CLAIMS / target.name):
                held.enter_context(lock)
                free.append(target)
        results = ledger.results() if free else {}
        yield [target for target in free if not has_ended(results.get(target.name), since)]


def _claim(path: pathlib.Path) -> TextIO | None:
    """Returns the locked file of a claim; None: another process holds it."""
    try:
        path.parent.mkdir(exist_ok=True)
        lock = path.open("w")
    except OSError as e:
        raise SaveError(f"{path}: cannot be written ({e.strerror}); make room") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    except OSError:
        # Some network file systems have no locks; there a run may be trained twice, by the same numbers.
        pass
    return lock
