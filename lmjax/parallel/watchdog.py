"""Ends a process that cannot continue, because a step hangs or another process of the run is lost.

It exits with `os._exit`, because at a normal exit Python and jax would wait for the same step or process.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType

from lmjax.errors import StuckError

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
# The C library holds only the address of a handler, so a reference here keeps Python from freeing it.
_kept: list[object] = []


def leave(message: str, code: int, *, stacks: bool = False) -> None:
    """Ends this process at once, with a message and, if `stacks`, the stack of every thread."""
    print(f"lmjax: {message}", file=sys.stderr, flush=True)
    if stacks:
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
    sys.stdout.flush()
    os._exit(code)


def leave_when_aborted(message: str) -> None:
    """Makes an abort of this process print a message and the stacks, and exit with the code of a stuck run.

    jax's distributed client aborts from C++ when another process is lost. Python's own signal handlers do not catch
    this: they run between two instructions of Python, and an abort ends the process before the next one.
    """

    def aborted(number: int) -> None:
        del number
        leave(message, StuckError.exit_code, stacks=True)

    _kept.append(_HANDLER(aborted))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, _HANDLER], ctypes.c_void_p
    libc.signal(signal.SIGABRT, _kept[-1])


class Watchdog:
    """Ends the process if there is no report for too long. A context manager.

    Each step, and each batch of an evaluation, reports. Compilation has no time limit and runs inside `paused`.
    """

    def __init__(self, seconds: float):
        """Makes a watchdog that starts when it is entered; `seconds` is the longest time between two reports."""
        self._seconds = seconds
        self._doing, self._since = "starting", time.monotonic()
        self._pauses = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.report("starting")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def report(self, doing: str) -> None:
        """Notes that the run makes progress, and what it does next."""
        self._doing, self._since = doing, time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time spent inside."""
        self._pauses += 1
        try:
            yield
        finally:
            self._since = time.monotonic()
            self._pauses -= 1

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            if not self._pauses and time.monotonic() - self._since > self._seconds:
                leave(
                    f"{self._doing} has not ended in {self._seconds:g} seconds: the device, a disk or another process "
                    "hangs. The stack of every thread follows; run the same command again, it resumes from the newest "
                    "checkpoint (--config.step_timeout waits longer)",
                    StuckError.exit_code,
                    stacks=True,
                )
