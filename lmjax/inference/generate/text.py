"""Token ids into text, as they come: whole characters, nothing twice, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from lmjax.data.vocabulary import Vocabulary

# Tokens behind which the text of the next one does not depend on those before.
_CONTEXT = 8


def begins_anew(vocabulary: Vocabulary, context: Sequence[int]) -> bool:
    """Whether a text behind the ids of `context` is one of its own: there are none, or the last of them is special."""
    return not len(context) or int(context[-1]) in vocabulary.special_ids


def a_word(vocabulary: Vocabulary) -> int | None:
    """Returns a token of letters or digits, of several if there is one; None if no token is one."""
    found = None
    for i, piece in enumerate(vocabulary.pieces):
        if piece.decode(errors="replace").isalnum():
            if len(piece) > 1:
                return i
            found = i if found is None else found
    return found


class TextStream:
    """The text behind a prompt, in parts.

    The parts joined are what the tokenizer decodes of all ids, less what it decodes of the prompt: a space that it
    drops in front of a text is dropped only where the text begins anew. Each part is decoded behind a few tokens, so
    the cost is linear. Bytes that are not UTF-8 become U+FFFD, and change no character that was given out before them.

    A stop string, and what could be the beginning of one, is held back; the first that is whole ends the text in front
    of it.

    Attributes:
        stopped: whether a stop string occurred.
    """

    def __init__(self, tokenizer: Vocabulary, context: Sequence[int] = (), stop: Sequence[str] = ()):
        """Begins behind a prompt.

        Args:
            tokenizer: of the ids.
            context: the ids in front of the text.
            stop: strings that end it; none is empty.
        """
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._word = a_word(tokenizer)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._spelled = ""  # by the bytes of what has not been given out
        self._held = ""  # might begin a stop string
        self._ids = [] if begins_anew(tokenizer, context) else self._tail(context)
        self._known = tokenizer.decode(self._ids)

    def push(self, token: int) -> str:
        """Returns the text that is certain now that `token` follows; ids beyond the vocabulary stand for nothing."""
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
        """Returns the rest of the text, of which no more follows."""
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
        """Returns the last ids, from the beginning of a character on, behind a word: no space of theirs is dropped."""
        tail = [int(i) for i in ids[-_CONTEXT:]]
        pieces = self._tokenizer.pieces
        while tail and b"\x80" <= pieces[tail[0]][:1] < b"\xc0":
            tail.pop(0)
        return tail if self._word is None else [self._word, *tail]

    def _decoded(self) -> str:
        """Returns what the last tokens add to the text."""
        text, known, spelled = self._tokenizer.decode(self._ids), self._known, self._spelled
        self._known, self._spelled = text, ""
        # Some decoders replace all of a run of bytes once one of them is wrong, also what was given out.
        return text[len(known) :] if text.startswith(known) else spelled

    def _released(self, new: str) -> str:
        """Returns what may be given out of the text that was held back and a new part."""
        if not self._stop:
            return new
        text = self._held + new
        # The first that is whole, and so the same however the text is cut into tokens.
        whole = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if whole:
            self.stopped, self._held = True, ""
            return text[: min(whole)[1]]
        longest = min(max(map(len, self._stop)) - 1, len(text))
        keep = next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stop)), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
