"""SIGTERM and Ctrl-C: a run finishes its step, saves a checkpoint and ends."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """A context manager that records the first SIGTERM or SIGINT; all processes of a run stop at the same step.

    A second Ctrl-C interrupts at once, as it would without this class. Outside the main thread nothing is recorded,
    because Python allows no signal handlers there. With several processes jax's preemption service has its own handler
    of SIGTERM, which must not be replaced; here Ctrl-C is then passed on to it as a SIGTERM.
    """

    def __init__(self):
        self._asked = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            alone = jax.process_count() == 1
            for number in (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        if number == signal.SIGINT and jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def stop_at(self, step: int) -> bool:
        """Returns whether the run stops after `step`."""
        if jax.process_count() == 1:
            return self._asked
        # jax's preemption service catches SIGTERM in any process and chooses one step for all of them.
        return multihost_utils.reached_preemption_sync_point(step)
