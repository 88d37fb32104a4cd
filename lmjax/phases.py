"""Messages on stderr about what a command is doing, for phases longer than a second; off unless `tell` is called."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

# Seconds until a phase is first reported, and between two reports: on a terminal, and in a log.
_MOMENT, _TERMINAL, _LOG = 1.0, 1.0, 30.0

_told = False
_running: list[str] = []


def tell(on: bool = True) -> None:
    """Switches the messages on or off."""
    global _told
    _told = on


@contextlib.contextmanager
def phase(what: str) -> Iterator[None]:
    """Reports `what`, such as "compiling", and its duration, while the context runs.

    If phases are nested, only the innermost is reported. A thread writes the messages, because the work is mostly one
    long call of a library.
    """
    if not _told:
        yield
        return
    ended = threading.Event()
    _running.append(what)
    depth = len(_running)
    teller = threading.Thread(target=_teller, args=(what, depth, ended), daemon=True)
    teller.start()
    try:
        yield
    finally:
        _running.pop()
        ended.set()
        teller.join()


def _teller(what: str, depth: int, ended: threading.Event) -> None:
    """Reports a phase until it has ended, except while a nested phase runs."""
    start, said = time.perf_counter(), False
    terminal = sys.stderr is not None and sys.stderr.isatty()
    wait = _MOMENT
    while not ended.wait(wait):
        if len(_running) > depth:
            continue
        seconds = f" {time.perf_counter() - start:.0f} s" if said else ""
        print(f"\r{what} ...{seconds}" if terminal else f"{what} ...{seconds}", end="" if terminal else "\n",
              file=sys.stderr, flush=True)  # fmt: skip
        said, wait = True, _TERMINAL if terminal else _LOG
    if said and terminal:
        print(file=sys.stderr, flush=True)
