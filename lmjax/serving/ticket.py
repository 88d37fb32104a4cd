"""A request on its way: what the engine must know to write its text, and the events that it sends back."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from lmjax.inference.generate.beam_tree import Node
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.constrain import Constraint
from lmjax.inference.generate.requests import Request
from lmjax.inference.generate.text import Generation


@dataclasses.dataclass(frozen=True)
class Token:
    """A generated token.

    Attributes:
        id: of it.
        text: that is certain after it; it may be empty, or hold the text of earlier tokens.
        log_prob: of the model, before penalties, temperature and filters.
        alternatives: the likeliest ids there and their log-probabilities, as many as the ticket asks for.
    """

    id: int
    text: str
    log_prob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of a text.

    Attributes:
        generation: the whole text.
        rest: the part of it that no token brought.
    """

    generation: Generation
    rest: str


@dataclasses.dataclass(frozen=True)
class Found:
    """The end of a beam search.

    Attributes:
        generations: the texts, best first.
        nodes: the continuations that it compared, of which a text is a path.
        last: for each text, the number of the node of its last token; -1: it has none.
    """

    generations: tuple[Generation, ...]
    nodes: tuple[Node, ...]
    last: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Failed:
    """The end of a ticket without a whole text; `error` says why."""

    error: Exception


Event = Token | Ended | Found | Failed


class OverdueError(Exception):
    """A request took longer than it may."""


class CancelledError(Exception):
    """A request was cancelled."""


@dataclasses.dataclass(eq=False)
class Ticket:
    """A request for one text, or for those of a beam search if its config has beams.

    Attributes:
        request: the prompt and the seed.
        config: the settings.
        send: called by the engine with each event; it must return at once.
        stop_ids: ids that end the text.
        never: ids that are never generated.
        constraint: that the text must satisfy; None: none.
        bias: what is added to the logits of ids.
        presence: the penalty of ids that were generated.
        frequency: the penalty of ids for each time that they were generated.
        alternatives: likeliest tokens that are reported with each token.
        adapter: the number of its adapter.
        client: who asks; clients are served in turn.
        deadline: of `time.monotonic`, after which it fails.
        cancelled: set when the client has gone.
    """

    request: Request
    config: GenerateConfig
    send: Callable[[Event], None]
    stop_ids: Sequence[int] = ()
    never: Sequence[int] = ()
    constraint: Constraint | None = None
    bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    presence: float = 0.0
    frequency: float = 0.0
    alternatives: int = 0
    adapter: int = 0
    client: str = ""
    deadline: float = float("inf")
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Ends the ticket at the engine's next step; no event follows but the last one."""
        self.cancelled.set()

    @property
    def over(self) -> bool:
        """Returns whether its client has gone or its deadline has passed."""
        return self.cancelled.is_set() or time.monotonic() > self.deadline

    @property
    def why_over(self) -> Exception:
        """Returns the error of a ticket that is over."""
        if self.cancelled.is_set():
            return CancelledError("the request was cancelled")
        return OverdueError("the request took longer than it may")
