"""The engine: one thread that owns the device, and writes the texts of many requests in one running batch.

Between two steps of the batch it takes new requests, reads one piece of one prompt, runs one other piece of work (such
as a score), and ends texts that were cancelled or are overdue. So a long prompt or a batch of scores delays the texts
of others by one piece, not by all of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from absl import logging

from lmjax.adapters.several import Several
from lmjax.inference.loaded import LoadedModel
from lmjax.serving.compilations import compilations
from lmjax.serving.config import EngineConfig
from lmjax.serving.fair import FairQueue
from lmjax.serving.rows import Rows
from lmjax.serving.searches import Searches
from lmjax.serving.texts import Counts, Texts
from lmjax.serving.ticket import Ticket

# Seconds between two looks at an engine without work.
_IDLE = 0.5


class FullError(Exception):
    """As many requests wait as may; `after` is the number of seconds after which it is worth to ask again."""

    def __init__(self, after: int):
        super().__init__("too many requests wait")
        self.after = after


class ClosedError(Exception):
    """The engine takes no new requests, because it ends."""


class Engine:
    """Writes texts with one model. All methods may be called by any thread.

    Attributes:
        loaded: the model.
        config: sizes.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, several: Several | None = None):
        """Checks that the batch fits into memory; `start` makes it.

        Raises:
            FlagError: it does not.
        """
        self.loaded, self.config = loaded, config
        self._writes = loaded.config.family.causal and loaded.model.has_vocabulary
        self._rows = Rows(loaded, config, several) if self._writes else None
        self._texts = Texts(loaded, config, self._rows)
        self._searches = Searches(loaded, config, self._rows, self._texts)
        self._lock = threading.Condition()
        # Those of beam searches wait in a queue of their own, so that no text waits for a search.
        self._waiting, self._seeking = FairQueue(), FairQueue()
        self._works: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._closing = self._aborting = False
        self._busy_since: float | None = None
        self._compiled = 0
        self._error: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def counts(self) -> Counts:
        """Returns what the engine has done."""
        return self._texts.counts

    @property
    def max_length(self) -> int:
        """Returns the most tokens of a prompt and its text; of an encoder-decoder, of each of the two."""
        return self._rows.max_length if self._rows else self.loaded.config.max_length

    @property
    def writes(self) -> bool:
        """Returns whether the model generates text."""
        return self._writes

    @property
    def load(self) -> tuple[int, int]:
        """Returns the number of texts that are being written, and of requests that wait."""
        with self._lock:
            return self._texts.busy + self._searches.busy, len(self._waiting) + len(self._seeking)

    @property
    def _has_work(self) -> bool:
        queues = len(self._waiting) + len(self._seeking)
        return bool(self._texts.busy or self._searches.busy or queues or self._works)

    @property
    def sick(self) -> str:
        """Returns why the engine does not work; empty: it does."""
        if self._error is not None:
            return f"the engine has ended: {type(self._error).__name__}"
        since = self._busy_since
        if self._ready.is_set() and since is not None and time.monotonic() - since > self.config.stuck_after:
            return f"a step has taken more than {self.config.stuck_after:g} seconds"
        return ""

    def start(self) -> None:
        """Compiles all programs, and returns when requests can be taken; raises the error of the warm-up."""
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Puts tickets into the queue, all of them or none; either all or none of them are beam searches.

        Raises:
            FullError: the queue has no room for them.
            ClosedError: the engine ends.
        """
        with self._lock:
            if self._closing or self._error is not None:
                raise ClosedError("the server is shutting down")
            searches = bool(tickets) and tickets[0].config.beams is not None
            queue = self._seeking if searches else self._waiting
            free = 1 - self._searches.busy if searches else self.config.rows - self._texts.busy
            if len(queue) + len(tickets) > self.config.queue + max(free, 0):
                self.counts.refused += len(tickets)
                raise FullError(self._after())
            queue.put(tickets)
            self._lock.notify()

    def call(self, work: Callable[[], Any]) -> Future:
        """Returns the future result of a function that the engine's thread calls between two steps.

        Raises:
            FullError: as many other calls wait as requests may.
            ClosedError: the engine ends.
        """
        future: Future = Future()
        with self._lock:
            if self._closing or self._error is not None:
                raise ClosedError("the server is shutting down")
            if len(self._works) > self.config.queue:
                self.counts.refused += 1
                raise FullError(self._after())
            self._works.append((future, work))
            self._lock.notify()
        return future

    def drain(self, seconds: float) -> bool:
        """Takes no more requests, and returns whether all that were taken have ended within so many seconds."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Ends everything at once; what was not finished fails."""
        with self._lock:
            self._closing = self._aborting = True
            self._lock.notify()
        if self._thread.ident is not None:
            self._thread.join(30)

    def _after(self) -> int:
        """Returns the seconds after which a place in the queue may be free: those of a text of 128 tokens."""
        steps, seconds = self.counts.steps, self.counts.step_seconds
        return max(1, min(60, round(128 * seconds / steps))) if steps else 1

    def _run(self) -> None:
        """Works until the engine is closed; the engine's thread."""
        try:
            with self.loaded.on_devices():
                if self._rows:
                    self._rows.warm_up()
                    self._searches.warm_up()
                self._compiled = compilations()
                self._ready.set()
                while self._turn():
                    pass
        except BaseException as e:
            self._error = e
            logging.error("the engine has ended: %s", type(e).__name__)
        finally:
            self._abandon(self._error or ClosedError("the server is shutting down"))
            self._ready.set()

    def _turn(self) -> bool:
        """Does one piece of each kind of work; returns False when the engine is to end."""
        with self._lock:
            if not self._has_work and not self._closing:
                self._busy_since = None
                self._lock.wait(_IDLE)
            if self._aborting or (self._closing and not self._has_work):
                return False
            gone = [ticket for queue in (self._waiting, self._seeking) for ticket in queue.remove(lambda x: x.over)]
            if self._texts.takes and len(self._waiting):
                # Under the lock, because `submit` counts the texts that are being written.
                self._texts.begin(self._waiting.get())
            if self._searches.takes and len(self._seeking):
                self._searches.begin(self._seeking.get())
            work = self._works.popleft() if self._works else None
        self._busy_since = time.monotonic()
        for ticket in gone:
            self._texts.fail(ticket, ticket.why_over)
        if work:
            self._do(*work)
        self._texts.end_unwanted()
        self._searches.end_unwanted()
        self._searches.turn()
        try:
            self._texts.read()
            self._texts.step()
        except Exception as e:
            logging.exception("a step failed; the texts that were being written are lost")
            self._texts.lose(e)
        self.counts.compiled = compilations() - self._compiled
        return True

    def _do(self, future: Future, work: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        before = compilations()
        try:
            future.set_result(work())
        except Exception as e:
            future.set_exception(e)
        # Programs of other work are compiled for the shapes that they meet, and are counted apart.
        new = compilations() - before
        self._compiled += new
        self.counts.work_compiled += new

    def _abandon(self, error: BaseException) -> None:
        """Fails everything, at the engine's end."""
        with self._lock:
            self._closing = True
            tickets = [*self._texts.taken_back(), *self._searches.taken_back()]
            tickets += [ticket for queue in (self._waiting, self._seeking) for ticket in queue.remove(lambda _: True)]
            works, self._works = self._works, deque()
        shown = error if isinstance(error, Exception) else ClosedError("the server is shutting down")
        for ticket in tickets:
            self._texts.fail(ticket, shown)
        for future, _ in works:
            if future.set_running_or_notify_cancel():
                future.set_exception(shown)
