"""The engine: one thread that owns the device, and writes the texts of many requests in one running batch.

Between two steps of the batch it takes new requests, reads one piece of one prompt, runs one other piece of work (such
as a score), and ends texts that were cancelled or are overdue. So a long prompt or a batch of scores delays the texts
of others by one piece, not by all of it.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from absl import logging

from lmjax.adapters.several import Several
from lmjax.errors import UserError
from lmjax.inference.generate.by_row import RowValues
from lmjax.inference.generate.progress import TextProgress
from lmjax.inference.loaded import LoadedModel
from lmjax.serving.compilations import compilations
from lmjax.serving.config import EngineConfig
from lmjax.serving.fair import FairQueue
from lmjax.serving.rows import Reading, Rows, taken
from lmjax.serving.ticket import CancelledError, Ended, Event, Failed, OverdueError, Ticket, Token

# Seconds between two looks at an engine without work.
_IDLE = 0.5


class FullError(Exception):
    """As many requests wait as may; `after` is the number of seconds after which it is worth to ask again."""

    def __init__(self, after: int):
        super().__init__("too many requests wait")
        self.after = after


class ClosedError(Exception):
    """The engine takes no new requests, because it ends."""


@dataclasses.dataclass
class Counts:
    """What an engine has done; only its thread writes them.

    Attributes:
        prompt_tokens: tokens of prompts that were read.
        tokens: generated tokens.
        ended: texts that ended.
        cancelled: tickets that were cancelled.
        overdue: tickets that took too long.
        failed: tickets that failed for another reason.
        refused: tickets that found the queue full.
        steps: of the batch.
        step_seconds: the time of all steps.
        compiled: programs that were compiled after the warm-up.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    ended: int = 0
    cancelled: int = 0
    overdue: int = 0
    failed: int = 0
    refused: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    compiled: int = 0


@dataclasses.dataclass
class _Row:
    """A text that is being written."""

    ticket: Ticket
    text: TextProgress
    sent: int = 0  # characters
    score: float = 0.0


class Engine:
    """Writes texts with one model. All methods may be called by any thread.

    Attributes:
        loaded: the model.
        config: sizes.
        counts: what it has done.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, several: Several | None = None):
        """Checks that the batch fits into memory; `start` makes it.

        Raises:
            FlagError: it does not.
        """
        self.loaded, self.config, self.counts = loaded, config, Counts()
        self._writes = loaded.config.family.causal and loaded.model.has_vocabulary
        self._rows = Rows(loaded, config, several) if self._writes else None
        self._lock = threading.Condition()
        self._waiting = FairQueue()
        self._works: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._closing = self._aborting = False
        self._active: dict[int, _Row] = {}
        self._reading: tuple[Reading, Ticket] | None = None
        self._busy_since: float | None = None
        self._compiled = 0
        self._error: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

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
            return len(self._active) + (self._reading is not None), len(self._waiting)

    @property
    def _has_work(self) -> bool:
        return bool(self._active or self._reading or len(self._waiting) or self._works)

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
        """Puts tickets into the queue, all of them or none.

        Raises:
            FullError: the queue has no room for them.
            ClosedError: the engine ends.
        """
        with self._lock:
            if self._closing or self._error is not None:
                raise ClosedError("the server is shutting down")
            free = self.config.rows - len(self._active) - (self._reading is not None)
            if len(self._waiting) + len(tickets) > self.config.queue + max(free, 0):
                self.counts.refused += len(tickets)
                raise FullError(self._after())
            self._waiting.put(tickets)
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
            gone = self._waiting.remove(_over)
            if self._reading is None and len(self._active) < self.config.rows and len(self._waiting):
                ticket = self._waiting.get()
                self._reading = self._rows.read(ticket.request, ticket.adapter), ticket
            work = self._works.popleft() if self._works else None
        self._busy_since = time.monotonic()
        for ticket in gone:
            self._fail(ticket, _why(ticket))
        if work:
            self._do(*work)
        self._end_unwanted()
        try:
            self._read()
            self._step()
        except Exception as e:
            logging.exception("a step failed; the texts that were being written are lost")
            self._lose(e)
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
        # Programs of other work are compiled for the shapes that they meet, and do not count.
        self._compiled += compilations() - before

    def _end_unwanted(self) -> None:
        """Ends the texts that were cancelled or are overdue."""
        if self._reading and _over(self._reading[1]):
            ticket, self._reading = self._reading[1], None
            self._fail(ticket, _why(ticket))
        rows = [row for row, text in self._active.items() if _over(text.ticket)]
        for row in rows:
            ticket = self._active.pop(row).ticket
            self._fail(ticket, _why(ticket))
        if rows:
            self._rows.end(rows)

    def _read(self) -> None:
        """Reads one piece of the prompt that is being read; after its last one the text joins the batch."""
        if self._reading is None:
            return
        reading, ticket = self._reading
        reading.step()
        if not reading.done:
            return
        self._reading = None
        self.counts.prompt_tokens += len(ticket.request.source or ticket.request.prompt)
        config, processors = ticket.config, ticket.config.processors
        given = processors.model_dump(exclude_defaults=True)
        try:
            text = TextProgress(
                self.loaded,
                ticket.request,
                stop_ids=ticket.stop_ids,
                stop=config.stop,
                constraint=ticket.constraint,
                bans=", ".join(f"{name}={value}" for name, value in given.items()),
            )
            allowed = self._allowed(text, ticket)
        except UserError as e:
            self._fail(ticket, e)
            return
        values = RowValues.of(
            config,
            self.loaded.config.vocab_size,
            stop=ticket.stop_ids,
            never=ticket.never,
            bias=ticket.bias,
            presence=ticket.presence,
            frequency=ticket.frequency,
            alternatives=ticket.alternatives,
        )
        begun = self._rows.begin(reading, values, config.max_new_tokens, allowed)
        chosen, done = taken(begun)
        row = next(i for i in range(self.config.rows) if i not in self._active)
        self._active[row] = _Row(ticket, text)
        if self._take(row, chosen, 0, bool(done[0])):
            self._rows.join(row, begun)

    def _step(self) -> None:
        """Adds a token to each text of the batch."""
        if not self._active:
            return
        start = time.monotonic()
        adapters = np.zeros(self.config.rows, np.int32)
        masks = None
        for row, found in list(self._active.items()):
            adapters[row] = found.ticket.adapter
            try:
                allowed = self._allowed(found.text, found.ticket)
            except UserError as e:
                self._active.pop(row)
                self._rows.end([row])
                self._fail(found.ticket, e)
                continue
            if allowed is not None:
                if masks is None:
                    masks = np.ones((self.config.rows, self.loaded.config.vocab_size), bool)
                masks[row] = allowed
        self._rows.step(adapters, masks)
        chosen, done = self._rows.taken()
        ended = [row for row in list(self._active) if not self._take(row, chosen, row, bool(done[row]))]
        if open_still := [row for row in ended if not done[row]]:
            self._rows.end(open_still)
        self.counts.steps += 1
        self.counts.step_seconds += time.monotonic() - start

    def _allowed(self, text: TextProgress, ticket: Ticket) -> np.ndarray | None:
        """Returns bool `[vocab]`, the ids that a text may go on with; None: all."""
        allowed, n = text.allowed(), ticket.config.processors.no_repeat_ngram
        if n:
            allowed = np.ones(self.loaded.config.vocab_size, bool) if allowed is None else allowed
            allowed[_repeats([*ticket.request.prompt, *text.ids], n)] = False
        return allowed

    def _take(self, row: int, chosen: Any, at: int, done: bool) -> bool:
        """Returns whether the text of a row goes on after its last token, which is sent.

        Args:
            row: of the batch.
            chosen: the last tokens.
            at: the row of the token in `chosen`.
            done: whether the device has ended the text.
        """
        found = self._active[row]
        ticket, text, token = found.ticket, found.text, int(chosen.ids[at])
        before = len(text.ids)
        try:
            new = text.push(token)
        except UserError as e:
            del self._active[row]
            self._fail(ticket, e)
            return False
        if len(text.ids) > before:
            found.score += float(chosen.log_probs[at])
            self.counts.tokens += 1
            pairs = zip(chosen.likeliest[at].tolist(), chosen.likeliest_log_probs[at].tolist(), strict=True)
            alternatives = tuple(pairs)[: ticket.alternatives]
            self._send(ticket, Token(token, new, float(chosen.log_probs[at]), alternatives))
            found.sent = len(text.text)
        if not (done or text.ended_here):
            return True
        del self._active[row]
        generation = text.finish(found.score)
        self.counts.ended += 1
        self._send(ticket, Ended(generation, generation.text[found.sent :]))
        return False

    def _lose(self, error: Exception) -> None:
        """Fails all texts that are being written, and makes the batch again."""
        tickets = [found.ticket for found in self._active.values()]
        tickets += [self._reading[1]] if self._reading else []
        self._active, self._reading = {}, None
        for ticket in tickets:
            self._fail(ticket, error)
        self._rows.reset()

    def _abandon(self, error: BaseException) -> None:
        """Fails everything, at the engine's end."""
        with self._lock:
            self._closing = True
            tickets = [found.ticket for found in self._active.values()] + self._waiting.remove(lambda _: True)
            tickets += [self._reading[1]] if self._reading else []
            works, self._works, self._active, self._reading = self._works, deque(), {}, None
        shown = error if isinstance(error, Exception) else ClosedError("the server is shutting down")
        for ticket in tickets:
            self._fail(ticket, shown)
        for future, _ in works:
            if future.set_running_or_notify_cancel():
                future.set_exception(shown)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if isinstance(error, CancelledError):
            self.counts.cancelled += 1
        elif isinstance(error, OverdueError):
            self.counts.overdue += 1
        else:
            self.counts.failed += 1
        self._send(ticket, Failed(error))

    def _send(self, ticket: Ticket, event: Event) -> None:
        try:
            ticket.send(event)
        except Exception:
            # Its receiver has gone.
            ticket.cancel()


def _over(ticket: Ticket) -> bool:
    """Returns whether nobody waits for a ticket any more."""
    return ticket.cancelled.is_set() or time.monotonic() > ticket.deadline


def _why(ticket: Ticket) -> Exception:
    if ticket.cancelled.is_set():
        return CancelledError("the request was cancelled")
    return OverdueError("the request took longer than it may")


def _repeats(ids: Sequence[int], n: int) -> list[int]:
    """Returns the ids that would complete an n-gram which the ids already have."""
    last = tuple(ids[len(ids) - n + 1 :])
    return [ids[i + n - 1] for i in range(len(ids) - n + 1) if tuple(ids[i : i + n - 1]) == last]
