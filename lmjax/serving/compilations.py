"""How many programs a thread has compiled, or read from the cache of compiled programs."""

from __future__ import annotations

import functools
import threading

import jax

# jax.monitoring reports it once for each program, found in the cache on disk or not, in the thread that needs it
# (jax 0.10).
_EVENT = "/jax/core/compile/backend_compile_duration"


class _Counter(threading.local):
    """A number of each thread."""

    count = 0

    def __call__(self, event: str, seconds: float, **more: object) -> None:
        if event == _EVENT:
            self.count += 1


@functools.cache
def _counter() -> _Counter:
    counter = _Counter()
    # There is no way to take it back, so there is one for the process.
    jax.monitoring.register_event_duration_secs_listener(counter)
    return counter


def compilations() -> int:
    """Returns the number of programs that this thread has compiled since the first call of any thread."""
    return _counter().count
