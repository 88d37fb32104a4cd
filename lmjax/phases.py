"""What a command is doing, told on stderr where it takes longer than a moment; a library that is imported is silent."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

# Seconds: until a phase is named, between two signs of life on a terminal, and in a log.
_MOMENT, _TERMINAL, _LOG = 1.0, 1.0, 30.0

_told = False
_running: list[str] = []


def tell(on: bool = True) -> None:
    """Has phases told from now on, or no longer."""
    global _told
    _told = on


@contextlib.contextmanager
def phase(what: str) -> Iterator[None]:
    """Tells what is being done while it is done: `what`, such as "compiling", and for how long.

    Of phases within one another the innermost is told. A thread tells it: what takes its time mostly stands in a
    library, and calls nothing meanwhile.
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
    """Tells a phase until it has ended, while no other is within it."""
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
