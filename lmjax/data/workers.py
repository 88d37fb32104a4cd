"""Reads the batches of worker processes, with a time limit for each."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from lmjax.errors import StuckError, WorkerError

Features = dict[str, np.ndarray]

# grain gives its processes names that begin with this.
_NAME = "grain-process-prefetch"
# Seconds within which grain notices that its processes have ended.
_NOTICED = 10.0


class BoundedReader:
    """Reads an iterator in a thread, so that waiting for an element can time out.

    If a worker process is stopped or never finishes a batch, grain waits without a limit. Here the wait ends after
    `seconds`, the workers are killed, and the error says why.
    """

    def __init__(self, iterator: Iterator[Any], seconds: float):
        """Starts the thread, which reads one element ahead.

        Args:
            iterator: grain's, over the batches of its worker processes.
            seconds: the longest wait for an element.
        """
        self._iterator, self._seconds = iterator, seconds
        self._queue: queue.Queue[tuple[Features | None, BaseException | None]] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="batches of workers", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._closed.is_set():
            try:
                batch = next(self._iterator, None)
                # Copied, because the arrays of workers are in shared memory, which must not be used after they end.
                item = batch if batch is None else {name: np.array(value) for name, value in batch.items()}
                self._put(item, None)
            except Exception as e:  # `read` raises it in the caller's thread
                self._put(None, e)
                return
            if item is None:
                return

    def _put(self, item: Features | None, error: BaseException | None) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put((item, error), timeout=0.2)
                return

    def read(self) -> Features | None:
        """Returns the next batch; None at the end.

        Raises:
            WorkerError: a worker process has ended.
            StuckError: there was no batch within the time limit; the workers have been killed.
        """
        try:
            item, error = self._queue.get(timeout=self._seconds)
        except queue.Empty:
            pids = ", ".join(str(p.pid) for p in _workers()) or "none"
            self._kill()
            raise StuckError(
                f"no batch came from the data workers (processes {pids}) in {self._seconds:g} seconds: one is stopped, "
                "or does not end; they were killed. Run the same command again; --config.data.workers=0 makes the "
                "batches in a thread, --config.data.worker_timeout waits longer"
            ) from None
        if isinstance(error, RuntimeError) and "Worker process" in str(error):
            raise WorkerError(
                f"a data worker ended: {error}\nExit code -9 means that it was killed, usually because memory ran out: "
                "run the same command again, with fewer --config.data.workers or a smaller --config.data.prefetch"
            ) from error
        if error is not None:
            raise error
        return item

    def _kill(self) -> None:
        for process in _workers():
            process.kill()

    def close(self) -> None:
        """Ends the thread; the iterator can be closed afterwards."""
        self._closed.set()
        self._thread.join(timeout=_NOTICED)
        if self._thread.is_alive():
            self._kill()
            self._thread.join(timeout=_NOTICED)


def _workers() -> list[multiprocessing.process.BaseProcess]:
    return [process for process in multiprocessing.active_children() if process.name.startswith(_NAME)]
