"""SIGTERM and Ctrl-C: asked to stop, a run finishes its step, saves, and leaves."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Notes the first SIGTERM or SIGINT while it is entered; all processes of a run agree on the step to stop at.

    A second Ctrl-C interrupts at once, as it would without this class. Outside the main thread, where Python allows no
    handlers, nothing is noted. Where there are several processes, jax's preemption service has a handler of SIGTERM of
    its own, which one here would replace: Ctrl-C is handed on to it.
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
        # The service behind this call catches SIGTERM in any process and agrees on one step for all.
        return multihost_utils.reached_preemption_sync_point(step)
