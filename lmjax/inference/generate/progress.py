"""One text during generation: what the host does with each of its tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from absl import logging

from lmjax.errors import DataError
from lmjax.inference.generate.constrain import Constraint
from lmjax.inference.generate.requests import Request
from lmjax.inference.generate.strategy import NOTHING
from lmjax.inference.generate.text import Finished, Generation, TextStream
from lmjax.inference.loaded import LoadedModel


def text_stream(loaded: LoadedModel, request: Request, stop: Sequence[str] = ()) -> TextStream:
    """Returns an empty text stream after a request's prompt; ids outside the tokenizer are left out of its context."""
    context = [i for i in request.prompt if i < loaded.tokenizer.vocab_size]
    return TextStream(loaded.tokenizer, context, tuple(stop))


def finish_reason(ids: Sequence[int], stop: Collection[int], *, stuck: bool) -> Finished:
    """Returns why a text ended."""
    if stuck:
        logging.warning("a text ended because no id was allowed next; allow more ids, or stop earlier")
        return "nothing_allowed"
    return "stop" if ids and ids[-1] in stop else "length"


class TextProgress:
    """The ids of a text so far, its text, and the state of its constraint.

    Attributes:
        ids: the generated ids so far; a stop id that ended the text is the last one.
        text: the text of them that is certain.
        stuck: whether no id was allowed next.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        request: Request,
        *,
        stop_ids: Collection[int],
        stop: Sequence[str] = (),
        constraint: Constraint | None = None,
        bans: str = "",
    ):
        """Begins the text after a prompt.

        Args:
            loaded: the model.
            request: the prompt.
            stop_ids: ids that end the text.
            stop: strings that end it.
            constraint: that the text must satisfy; None: none.
            bans: the settings that ban ids, for the message of an error.
        """
        self.ids: list[int] = []
        self.text = ""
        self.stuck = False
        self._forced, self._stop_ids, self._bans = loaded.prompts.forced, stop_ids, bans
        self._stream = text_stream(loaded, request, stop)
        self._state = constraint.start(request.prompt) if constraint else None
        self._mask: np.ndarray | None = None

    @property
    def constrained(self) -> bool:
        """Returns whether there is a constraint."""
        return self._state is not None

    def allowed(self) -> np.ndarray | None:
        """Returns bool `[vocab]`, the ids that the constraint allows next; None: there is no constraint."""
        self._mask = None if self._state is None else self._state.allowed()
        return self._mask

    def push(self, token: int) -> str:
        """Returns the text that is certain after a token; nothing, and the token is not taken, once the text has ended.

        Raises:
            DataError: no id is allowed next, although the constraint allows some.
        """
        if self.over:
            return ""
        if token == NOTHING:
            self._no_way_on()
            return ""
        self.ids.append(token)
        new = "" if token in self._stop_ids else self._stream.push(token)
        if self._state is not None:
            self._state.advance(token)
        self.text += new
        return new

    @property
    def ended_here(self) -> bool:
        """Returns whether the text has ended for a reason that the device does not know."""
        # A constraint may end a text although the model has no stop id.
        return self._stream.stopped or self._whole

    @property
    def over(self) -> bool:
        """Returns whether the text has ended with a stop id, or for a reason that the device does not know."""
        return self.ended_here or (bool(self.ids) and self.ids[-1] in self._stop_ids)

    def finish(self, score: float) -> Generation:
        """Returns the whole text; `score` is the sum of the log-probabilities of its ids."""
        self.text += self._stream.finish()
        reason = "stop" if self.ended_here else finish_reason(self.ids, self._stop_ids, stuck=self.stuck)
        # A constraint may be satisfied by the empty text: then the score of the chosen token does not count.
        return Generation(self.text, (*self._forced, *self.ids), score if self.ids else 0.0, reason)

    @property
    def _whole(self) -> bool:
        """Returns whether the constraint allows nothing more."""
        return self._state is not None and (self._state.finished or (self._mask is not None and not self._mask.any()))

    def _no_way_on(self) -> None:
        if self._state is not None:
            raise DataError(
                f"regex or json_schema: none of the tokens that it allows after {self.text!r} is allowed by"
                f" {self._bans or 'this model'}; leave one out"
            )
        self.stuck = True
