"""Beam search beside the running batch: one search at a time, of which the engine takes one step in each of its turns.

So a search delays the texts of others by the time of its own rows, however many searches wait. Its shapes are fixed
too: one program serves every number of beams up to the configured one.
"""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import numpy as np
from absl import logging

from lmjax.errors import FlagError, UserError
from lmjax.inference.generate import decode
from lmjax.inference.generate.beam_tree import BeamTree, RecordedBeams
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.decode import Decoding
from lmjax.inference.generate.generate import beam_texts, resolved, stop_ids
from lmjax.inference.generate.processors import Processors
from lmjax.inference.generate.requests import Request, chatting
from lmjax.inference.loaded import LoadedModel
from lmjax.serving.config import EngineConfig
from lmjax.serving.reading import Reading
from lmjax.serving.rows import Rows
from lmjax.serving.texts import Texts
from lmjax.serving.ticket import Found, Ticket


@dataclasses.dataclass
class _Search:
    """The search that runs."""

    ticket: Ticket
    strategy: RecordedBeams
    tree: BeamTree
    decoding: Decoding


class Searches:
    """The beam search that runs and the prompt that is read for the next one; only the engine's thread calls it."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig, rows: Rows | None, texts: Texts):
        """Takes the batch, whose programs read prompts, and the texts, which count and send; None: no text is written.

        Nothing is compiled before `warm_up`.
        """
        self._loaded, self._config, self._rows, self._texts = loaded, config, rows, texts
        self._reading: tuple[Reading, Ticket] | None = None
        self._search: _Search | None = None
        forms = [loaded]
        with contextlib.suppress(FlagError):
            forms.append(chatting(loaded))
        given = resolved(loaded, GenerateConfig(beams=None))
        self._stops = max(len(stop_ids(form, given)) for form in forms)
        self._banned = max(len({*form.prompts.never, *given.processors.banned}) for form in forms)

    @property
    def busy(self) -> int:
        """Returns the number of searches that run, and of prompts that are read for one."""
        return (self._search is not None) + (self._reading is not None)

    @property
    def takes(self) -> bool:
        """Returns whether the prompt of another search can be read."""
        return self._rows is not None and self._config.beams > 0 and not self.busy

    def begin(self, ticket: Ticket) -> None:
        """Begins to read the prompt of a ticket; fails the ticket if it cannot be read."""
        try:
            self._reading = self._rows.read(ticket.request, ticket.adapter, ticket.config.max_new_tokens), ticket
        except Exception as e:
            self._texts.fail(ticket, e)

    def end_unwanted(self) -> None:
        """Ends a search that was cancelled or is overdue."""
        if self._reading and self._reading[1].over:
            (_, ticket), self._reading = self._reading, None
            self._texts.fail(ticket, ticket.why_over)
        if self._search and self._search.ticket.over:
            ticket, self._search = self._search.ticket, None
            self._texts.fail(ticket, ticket.why_over)

    def turn(self) -> None:
        """Takes one step of the search, or reads one piece of its prompt; an error is that of its ticket alone."""
        try:
            if self._search is not None:
                self._step()
            elif self._reading is not None:
                self._read()
        except Exception as e:
            if not isinstance(e, UserError):
                logging.exception("a beam search failed")
            for ticket in self.taken_back():
                self._texts.fail(ticket, e)

    def taken_back(self) -> list[Ticket]:
        """Returns the tickets of what runs and is read, after taking them out."""
        tickets = [self._search.ticket] if self._search else []
        tickets += [self._reading[1]] if self._reading else []
        self._search = self._reading = None
        return tickets

    def warm_up(self) -> None:
        """Runs every program once, so that none is compiled later."""
        if self._rows is None or not self._config.beams:
            return
        least, beams = len(self._loaded.prompts.forced) + 2, {"beams": self._config.beams}
        config = resolved(self._loaded, GenerateConfig(max_new_tokens=least, beams=beams))
        requests = self._rows.warming()
        for request in requests if self._rows.sources else requests[:1]:
            search = self._begun(self._rows.read_now(request), _unsent(request, config))
        search.decoding = self._stepped(search)
        jax.block_until_ready(search.decoding)

    def _read(self) -> None:
        reading, ticket = self._reading
        reading.step()
        if reading.done:
            self._texts.counts.known_tokens += reading.known
            self._texts.counts.prompt_tokens += len(ticket.request.source or ticket.request.prompt)
            self._search, self._reading = self._begun(reading, ticket), None
            self._take()

    def _begun(self, reading: Reading, ticket: Ticket) -> _Search:
        """Returns a search with its first tokens chosen."""
        config, vocab, most = ticket.config, self._loaded.config.vocab_size, self._config.beams
        form = dataclasses.replace(self._loaded.prompts, never=tuple(ticket.never))
        processors = Processors.of(config.processors, form)
        if self._banned:
            # An id beyond the vocabulary bans nothing.
            banned = [] if processors.banned is None else processors.banned
            padded = np.pad(np.int32(banned), (0, self._banned - len(banned)), constant_values=vocab)
            processors = processors.replace(banned=padded)
        given = config.beams.model_dump() | {"beams": most, "used": config.beams.beams}
        strategy = RecordedBeams(**given, processors=processors)
        stop = np.full(max(self._stops, 1), -1, np.int32)
        stop[: len(ticket.stop_ids)] = ticket.stop_ids
        fields = self._rows.fields(reading.request, config.max_new_tokens) | {"stop": stop}
        state = strategy.start([reading.request.seed], self._rows.capacity)
        cache = self._rows.widened(reading.cache)
        decoding = decode.begin(reading.logits, cache, state, fields, None, strategy=strategy)
        return _Search(ticket, strategy, BeamTree(most, config.beams.beams), decoding)

    def _stepped(self, search: _Search) -> Decoding:
        adapters = np.full(self._config.beams, search.ticket.adapter, np.int32)
        params, model = self._rows.params(adapters), self._loaded.model
        return decode.run(params, search.decoding, np.int32(1), None, model=model, strategy=search.strategy)

    def _step(self) -> None:
        self._search.decoding = self._stepped(self._search)
        self._texts.counts.search_steps += 1
        self._take()

    def _take(self) -> None:
        """Records the last choice; ends the search if it was the last one."""
        search, state = self._search, self._search.decoding.state
        found, kept, done = jax.device_get((state.found, state.kept, state.done))
        search.tree.add(found, kept)
        if not done.all():
            return
        self._search, ticket = None, search.ticket
        ids, lengths, scores = (x[0] for x in search.strategy.results(jax.device_get(state)))
        texts = beam_texts(self._loaded, ticket.request, ticket.stop_ids, ids, lengths, scores)
        forced = len(self._loaded.prompts.forced)
        last = tuple(search.tree.last(each.ids[forced:]) for each in texts)
        self._texts.counts.ended += 1
        self._texts.counts.tokens += sum(len(each.ids) for each in texts)
        self._texts.send(ticket, Found(tuple(texts), tuple(search.tree.nodes), last))


def _unsent(request: Request, config: GenerateConfig) -> Ticket:
    """Returns a ticket whose events go nowhere, for the warm-up."""
    return Ticket(request, config, lambda _: None)
