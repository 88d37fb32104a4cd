"""Generated text, and incremental decoding of token ids: only whole characters, and no part of a stop string."""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Sequence
from typing import Literal

from lmjax.data.vocabulary import Vocabulary

# With this many tokens of context, the text of the next token does not depend on earlier tokens.
_CONTEXT = 8


Finished = Literal["stop", "length", "nothing_allowed"]


@dataclasses.dataclass(frozen=True)
class Generation:
    """The text generated for a prompt.

    Attributes:
        text: without special tokens, and without the stop string or id that ended it; if masks of the prompt were
            replaced, the whole text.
        ids: all generated ids, with forced ids and the stop id that ended the text.
        score: the sum of the log-probabilities of the ids that were not forced, in nats. They are the model's own,
            before penalties, temperature and filters, but normalised over the ids that a constraint allows. For beam
            search, its score.
        finished: why the text ended: a stop id or string, the limit (of unmasking, the number of masks), or no id was
            allowed (because of bans, or of repeated n-grams).
    """

    text: str
    ids: tuple[int, ...]
    score: float
    finished: Finished


def begins_anew(vocabulary: Vocabulary, context: Sequence[int]) -> bool:
    """Returns whether the text after `context` is decoded as a new text: `context` is empty or ends in a special id."""
    return not len(context) or int(context[-1]) in vocabulary.special_ids


def a_word(vocabulary: Vocabulary) -> int | None:
    """Returns a token of letters or digits only, if possible with more than one; None if there is no such token."""
    found = None
    for i, piece in enumerate(vocabulary.pieces):
        if piece.decode(errors="replace").isalnum():
            if len(piece) > 1:
                return i
            found = i if found is None else found
    return found


class TextStream:
    """The text after a prompt, returned in parts.

    The joined parts equal the tokenizer's text of all ids without its text of the prompt: a space that the tokenizer
    drops at the beginning of a text is dropped only after no context or a special token. Each part is decoded with a
    few tokens of context, so the cost is linear. Bytes that are not UTF-8 become U+FFFD and do not change characters
    that were returned before.

    Text that may be the beginning of a stop string is held back. The first complete stop string ends the text, which
    does not include it.

    Attributes:
        stopped: whether a stop string occurred.
    """

    def __init__(self, tokenizer: Vocabulary, context: Sequence[int] = (), stop: Sequence[str] = ()):
        """Starts the text after a prompt.

        Args:
            tokenizer: of the ids.
            context: the ids before the text.
            stop: strings that end the text; none is empty.
        """
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._word = a_word(tokenizer)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._spelled = ""  # decoded from the bytes of the tokens whose text was not returned yet
        self._held = ""  # may be the beginning of a stop string
        self._ids = [] if begins_anew(tokenizer, context) else self._tail(context)
        self._known = tokenizer.decode(self._ids)

    def push(self, token: int) -> str:
        """Returns the text that is certain after `token`; ids beyond the vocabulary add no text."""
        if self.stopped or not 0 <= token < self._tokenizer.vocab_size:
            return ""
        self._ids.append(int(token))
        self._spelled += self._utf8.decode(self._tokenizer.pieces[token])
        if self._utf8.getstate()[0]:
            return ""  # in the middle of a character
        new = self._decoded()
        if len(self._ids) > 4 * _CONTEXT and self._word is not None:
            self._ids = self._tail(self._ids)
            self._known = self._tokenizer.decode(self._ids)
        return self._released(new)

    def finish(self) -> str:
        """Returns the rest of the text, including what was held back."""
        if self.stopped:
            return ""
        new = ""
        if self._utf8.getstate()[0]:
            self._spelled += self._utf8.decode(b"", final=True)
            new = self._decoded()
        rest = self._released(new) + self._held
        self._held = ""
        return rest

    def _tail(self, ids: Sequence[int]) -> list[int]:
        """Returns the last ids from the start of a character on, after a word so that their first space is kept."""
        tail = [int(i) for i in ids[-_CONTEXT:]]
        pieces = self._tokenizer.pieces
        while tail and b"\x80" <= pieces[tail[0]][:1] < b"\xc0":
            tail.pop(0)
        return tail if self._word is None else [self._word, *tail]

    def _decoded(self) -> str:
        """Returns what the last tokens add to the text."""
        text, known, spelled = self._tokenizer.decode(self._ids), self._known, self._spelled
        self._known, self._spelled = text, ""
        # After an invalid byte some decoders replace a whole run of bytes, including text that was returned already.
        return text[len(known) :] if text.startswith(known) else spelled

    def _released(self, new: str) -> str:
        """Returns the held-back text and a new part, as far as no stop string may begin in them."""
        if not self._stop:
            return new
        text = self._held + new
        # The stop string that ends first, so that the result does not depend on how tokens split the text.
        whole = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if whole:
            self.stopped, self._held = True, ""
            return text[: min(whole)[1]]
        longest = min(max(map(len, self._stop)) - 1, len(text))
        keep = next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stop)), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
