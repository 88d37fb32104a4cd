"""The texts that are being written: from the last piece of a prompt to the last token, and the events on the way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from lmjax.errors import UserError
from lmjax.inference.generate.by_row import RowValues
from lmjax.inference.generate.decode import Decoding
from lmjax.inference.generate.progress import TextProgress
from lmjax.inference.loaded import LoadedModel
from lmjax.serving.config import EngineConfig
from lmjax.serving.reading import Reading
from lmjax.serving.rows import Rows, taken
from lmjax.serving.ticket import CancelledError, Ended, Event, Failed, OverdueError, Ticket, Token


@dataclasses.dataclass
class Counts:
    """What an engine has done; only its thread writes them.

    Attributes:
        prompt_tokens: tokens of prompts.
        known_tokens: of these, those that kept prompts had already.
        tokens: generated tokens.
        ended: texts that ended.
        cancelled: tickets that were cancelled.
        overdue: tickets that took too long.
        failed: tickets that failed for another reason.
        refused: tickets that found the queue full.
        steps: of the batch.
        search_steps: of beam searches.
        step_seconds: the time of all steps.
        compiled: programs that were compiled after the warm-up, for texts.
        work_compiled: programs that were compiled for the shapes of other work, such as scores; each stays in memory.
    """

    prompt_tokens: int = 0
    known_tokens: int = 0
    tokens: int = 0
    ended: int = 0
    cancelled: int = 0
    overdue: int = 0
    failed: int = 0
    refused: int = 0
    steps: int = 0
    search_steps: int = 0
    step_seconds: float = 0.0
    compiled: int = 0
    work_compiled: int = 0


@dataclasses.dataclass
class _Row:
    """A text that is being written."""

    ticket: Ticket
    text: TextProgress
    sent: int = 0  # characters
    score: float = 0.0

    @property
    def masked(self) -> bool:
        """Returns whether a mask, which depends on its tokens, says what it may go on with."""
        return self.ticket.constraint is not None or bool(self.ticket.config.processors.no_repeat_ngram)


class Texts:
    """The rows of the running batch and what the host knows of each; only the engine's thread calls its methods.

    Attributes:
        counts: what was done.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, rows: Rows | None):
        """Takes the batch; None: the model writes no texts, and only failures of tickets are counted here."""
        self.counts = Counts()
        self._loaded, self._config, self._rows = loaded, config, rows
        self._active: dict[int, _Row] = {}
        # The texts that are in the step which the device computes; empty: it computes none.
        self._stepped: dict[int, _Row] = {}
        self._reading: tuple[Reading, Ticket] | None = None

    @property
    def busy(self) -> int:
        """Returns the number of texts that are being written, and of prompts that are being read."""
        return len(self._active) + (self._reading is not None)

    @property
    def takes(self) -> bool:
        """Returns whether another prompt can be read."""
        return self._rows is not None and self._reading is None and len(self._active) < self._config.rows

    def begin(self, ticket: Ticket) -> None:
        """Begins to read the prompt of a ticket; fails the ticket if it cannot be read."""
        try:
            self._reading = self._rows.read(ticket.request, ticket.adapter, ticket.config.max_new_tokens), ticket
        except Exception as e:
            self.fail(ticket, e)

    def end_unwanted(self) -> None:
        """Ends the texts that were cancelled or are overdue."""
        if self._reading and self._reading[1].over:
            ticket, self._reading = self._reading[1], None
            self.fail(ticket, ticket.why_over)
        rows = [row for row, text in self._active.items() if text.ticket.over]
        for row in rows:
            ticket = self._active.pop(row).ticket
            self.fail(ticket, ticket.why_over)
        if rows:
            self._rows.end(rows)

    def read(self) -> None:
        """Reads one piece of the prompt that is being read; after its last one the text joins the batch.

        An error here is that of one ticket: the batch is not changed before the text joins it.
        """
        if self._reading is None:
            return
        reading, ticket = self._reading
        try:
            reading.step()
            if not reading.done:
                return
            text, begun = self._begun(reading, ticket)
            chosen, done = taken(begun)
        except Exception as e:
            if not isinstance(e, UserError):
                logging.exception("a prompt could not be read")
            self._reading = None
            self.fail(ticket, e)
            return
        self._reading = None
        row = next(i for i in range(self._config.rows) if i not in self._active)
        self._active[row] = _Row(ticket, text)
        if self._take(row, chosen, 0, bool(done[0])):
            self._rows.join(row, begun, reading.filled)

    def _begun(self, reading: Reading, ticket: Ticket) -> tuple[TextProgress, Decoding]:
        """Returns the text after a prompt, and a batch of one row with its first token."""
        self.counts.known_tokens += reading.known
        self.counts.prompt_tokens += len(ticket.request.source or ticket.request.prompt)
        config, processors = ticket.config, ticket.config.processors
        given = processors.model_dump(exclude_defaults=True)
        text = TextProgress(
            self._loaded,
            ticket.request,
            stop_ids=ticket.stop_ids,
            stop=config.stop,
            constraint=ticket.constraint,
            bans=", ".join(f"{name}={value}" for name, value in given.items()),
        )
        values = RowValues.of(
            config,
            self._loaded.config.vocab_size,
            stop=ticket.stop_ids,
            never=ticket.never,
            bias=ticket.bias,
            presence=ticket.presence,
            frequency=ticket.frequency,
            alternatives=ticket.alternatives,
        )
        return text, self._rows.begin(reading, values, config.max_new_tokens, self._allowed(text, ticket))

    def step(self) -> None:
        """Takes the tokens of the step before, and begins the next one.

        The next step begins before the tokens are handled, so that the device does not wait for the host; if a text's
        next tokens depend on its last one by a mask, it begins afterwards. A text that the host ends is then a step too
        long, of which no token is taken.
        """
        if not self._active:
            self._stepped = {}
            return
        start = time.monotonic()
        stepped, self._stepped = self._stepped, {}
        if stepped:
            chosen, done = self._rows.taken()
        masked = any(found.masked for found in self._active.values())
        if not masked and not (stepped and all(row in stepped and done[row] for row in self._active)):
            self._begin_step(None)
        if stepped:
            self._take_all(stepped, chosen, done)
        if masked:
            masks = self._masks()
            if self._active:
                self._begin_step(masks)
        self.counts.step_seconds += time.monotonic() - start

    def _begin_step(self, masks: np.ndarray | None) -> None:
        adapters = np.zeros(self._config.rows, np.int32)
        for row, found in self._active.items():
            adapters[row] = found.ticket.adapter
        self._rows.step(adapters, masks)
        self._stepped = dict(self._active)
        self.counts.steps += 1

    def _take_all(self, stepped: dict[int, _Row], chosen: Any, done: np.ndarray) -> None:
        """Sends the tokens of a step to the texts that were in it and have not ended since."""
        rows = [row for row, found in stepped.items() if self._active.get(row) is found]
        ended = [row for row in rows if not self._take(row, chosen, row, bool(done[row]))]
        if open_still := [row for row in ended if not done[row]]:
            self._rows.end(open_still)

    def _masks(self) -> np.ndarray | None:
        """Returns bool `[rows, vocab]`, the ids that each text may go on with; None: all. Fails texts without any."""
        masks = None
        for row, found in list(self._active.items()):
            try:
                allowed = self._allowed(found.text, found.ticket)
            except UserError as e:
                self._active.pop(row)
                self._rows.end([row])
                self.fail(found.ticket, e)
                continue
            if allowed is not None:
                if masks is None:
                    masks = np.ones((self._config.rows, self._loaded.config.vocab_size), bool)
                masks[row] = allowed
        return masks

    def _allowed(self, text: TextProgress, ticket: Ticket) -> np.ndarray | None:
        """Returns bool `[vocab]`, the ids that a text may go on with; None: all."""
        allowed, n = text.allowed(), ticket.config.processors.no_repeat_ngram
        if n:
            allowed = np.ones(self._loaded.config.vocab_size, bool) if allowed is None else allowed
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
            self.fail(ticket, e)
            return False
        if len(text.ids) > before:
            found.score += float(chosen.log_probs[at])
            self.counts.tokens += 1
            pairs = zip(chosen.likeliest[at].tolist(), chosen.likeliest_log_probs[at].tolist(), strict=True)
            alternatives = tuple(pairs)[: ticket.alternatives]
            self.send(ticket, Token(token, new, float(chosen.log_probs[at]), alternatives))
            found.sent = len(text.text)
        if not (done or text.ended_here):
            return True
        del self._active[row]
        generation = text.finish(found.score)
        self.counts.ended += 1
        self.send(ticket, Ended(generation, generation.text[found.sent :]))
        return False

    def lose(self, error: Exception) -> None:
        """Fails all texts that are being written, and makes the batch again."""
        for ticket in self.taken_back():
            self.fail(ticket, error)
        self._rows.reset()

    def taken_back(self) -> list[Ticket]:
        """Returns the tickets of all texts, after taking them out."""
        tickets = [found.ticket for found in self._active.values()]
        tickets += [self._reading[1]] if self._reading else []
        self._active, self._stepped, self._reading = {}, {}, None
        return tickets

    def fail(self, ticket: Ticket, error: Exception) -> None:
        """Ends a ticket with an error."""
        if isinstance(error, CancelledError):
            self.counts.cancelled += 1
        elif isinstance(error, OverdueError):
            self.counts.overdue += 1
        else:
            self.counts.failed += 1
        self.send(ticket, Failed(error))

    def send(self, ticket: Ticket, event: Event) -> None:
        """Sends an event; a ticket whose receiver fails is cancelled."""
        try:
            ticket.send(event)
        except Exception:
            # Its receiver has gone.
            ticket.cancel()


def _repeats(ids: Sequence[int], n: int) -> list[int]:
    """Returns the ids that would complete an n-gram which the ids already have."""
    last = tuple(ids[len(ids) - n + 1 :])
    return [ids[i + n - 1] for i in range(len(ids) - n + 1) if tuple(ids[i : i + n - 1]) == last]
