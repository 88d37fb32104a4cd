"""Engines with tiny models, and the texts of tickets."""

import contextlib
import queue

from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import check, stop_ids
from lmjax.inference.loaded import LoadedModel
from lmjax.serving.config import EngineConfig
from lmjax.serving.engine import Engine
from lmjax.serving.ticket import Ended, Failed, Ticket

SMALL = EngineConfig(rows=3, chunk=16, max_length=64, beams=0)


@contextlib.contextmanager
def running(loaded: LoadedModel, config: EngineConfig = SMALL, several=None):
    """Gives an engine that has started, and closes it."""
    engine = Engine(loaded, config, several)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


class Box:
    """Takes the events of a ticket."""

    def __init__(self):
        self._events = queue.Queue()
        self.tokens = []

    def __call__(self, event):
        self._events.put(event)

    def next(self):
        return self._events.get(timeout=60)

    def result(self):
        """The `Generation`; raises the ticket's error."""
        while not isinstance(event := self.next(), Ended | Failed):
            self.tokens.append(event)
        if isinstance(event, Failed):
            raise event.error
        assert event.generation.text == "".join(token.text for token in self.tokens) + event.rest
        return event.generation


def ticket(loaded: LoadedModel, prompt, config: GenerateConfig, seed: int = 0, **fields) -> tuple[Ticket, Box]:
    """A ticket for the text that `generate` writes with these arguments, and what takes its events."""
    (request,), constraint = check(loaded, [prompt], config, seeds=[seed])
    box = Box()
    settings = {"stop_ids": stop_ids(loaded, config), "never": loaded.prompts.never, "constraint": constraint}
    return Ticket(request, config, box, **settings | fields), box
