"""The tokens of a text of any length, in bounded memory: encoded in windows, and the same as if encoded at once.

The libraries take some 200 bytes a character, so a text is cut into windows that overlap. Two neighbours are joined
where it is certain that the whole text has the same tokens:

1. In the middle half of the overlap both windows have the same tokens at the same places. What the ends of a window
   spoil (a space put in front, white space removed, a word cut in two) has worn off there.
2. Within it they are joined at a token that begins a part of what a pre-tokenizer cuts: the model sees every part by
   itself, and a part depends on the text from its beginning on. Where the pre-tokenizer cuts nothing there, they are
   joined between two tokens that no token of the vocabulary can bridge: the last byte of one and the first byte of the
   other stand side by side in none. In BPE any two neighbours will do: a sequence of tokens is the encoding of its text
   if and only if each two neighbours are that of theirs, because the first merge across a boundary would be made
   between the two alone as well.

Where there is no such place (a megabyte of one letter), the window on the left becomes twice as long, up to the text's
end: such a text needs the memory of its encoding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

WINDOW = 2**18  # characters
OVERLAP = 2**13
_GROUP = 16  # windows that are encoded at the same time


class Located(NamedTuple):
    """The tokens of a text and their places in it.

    Attributes:
        ids: `[tokens]` int32.
        starts: `[tokens]` int64, the character at which each token begins; never falls.
        parts: `[tokens]` bool, whether the token begins a part of what the pre-tokenizer cuts.
    """

    ids: np.ndarray
    starts: np.ndarray
    parts: np.ndarray

    def part(self, start: int, stop: int | None = None) -> "Located":
        """The tokens from number `start` up to number `stop`, or to the last."""
        return Located(*(column[start:stop] for column in self))


class Joints:
    """Finds where windows can be joined; the rules are the module's."""

    def __init__(self, pieces: Sequence[bytes], any_pair: bool):
        """Takes in a vocabulary.

        Args:
            pieces: what each id stands for.
            any_pair: whether two windows may be joined between any two tokens that both of them have, as in BPE.
        """
        self._any_pair = any_pair
        self._first, self._last = (
            np.array([piece[at] if piece else -1 for piece in pieces], np.int16) for at in (0, -1)
        )
        ends = np.cumsum([len(piece) for piece in pieces])
        content = np.frombuffer(b"".join(pieces), np.uint8)
        inside = np.ones(max(0, len(content) - 1), np.bool_)
        inside[[end - 1 for end in ends if 0 < end < len(content)]] = False
        self._bridged = np.zeros((256, 256), np.bool_)
        self._bridged[content[:-1][inside], content[1:][inside]] = True

    def between(self, left: Located, right: Located, low: int, high: int) -> tuple[int, int] | None:
        """The number of the first token behind the joint, in both windows; None if there is no sure place.

        Args:
            left: the window that ends in the overlap.
            right: the window that begins in it.
            low: the character from which on both must have the same tokens.
            high: the character up to which they must.
        """
        (a, b), (c, d) = (np.searchsorted(window.starts, (low, high)) for window in (left, right))
        if b - a < 2 or b - a != d - c or not _same(left.part(a, b), right.part(c, d)):
            return None
        ids, sure = left.ids[a:b], left.parts[a + 1 : b]
        if not sure.any():
            before, after = self._last[ids[:-1]], self._first[ids[1:]]
            sure = (before >= 0) & (after >= 0) & (self._any_pair | ~self._bridged[before, after])
        places = np.flatnonzero(sure)
        if not len(places):
            return None
        at = 1 + int(places[np.abs(places - len(ids) // 2).argmin()])
        return int(a) + at, int(c) + at


def encode_long(text: str, encode: Callable[[list[str]], list[Located]], joints: Joints) -> Located:
    """The tokens of a text, encoded in windows.

    Args:
        text: of any length.
        encode: gives the tokens of each of several texts, encoded at once.
        joints: of the vocabulary.
    """
    done: list[Located] = []
    step = WINDOW - OVERLAP
    windows = _windows(text, encode, step)
    # `left` takes the place of `many` windows from number `first` on; what is in front of its token `begin` is done.
    left, begin, first, many = next(windows), 0, 0, 1
    for number, right in enumerate(windows, 1):
        if number < first + many:
            continue
        low = number * step + OVERLAP // 4
        joint = joints.between(left, right, low, low + OVERLAP // 2)
        if joint is not None:
            done.append(left.part(begin, joint[0]))
            left, begin, first, many = right, joint[1], number, 1
            continue
        many *= 2
        longer = _window(text, encode, first * step, many * step + OVERLAP)
        if begin and not _same(longer.part(begin - 1, begin + 1), left.part(begin - 1, begin + 1)):
            return encode([text])[0]  # the place at which it was joined is none
        left = longer
    done.append(left.part(begin))
    return Located(*map(np.concatenate, zip(*done, strict=True)))


def _windows(text: str, encode: Callable[[list[str]], list[Located]], step: int) -> Iterator[Located]:
    starts = range(0, max(1, len(text) - OVERLAP), step)
    for i in range(0, len(starts), _GROUP):
        group = starts[i : i + _GROUP]
        for start, found in zip(group, encode([text[s : s + WINDOW] for s in group]), strict=True):
            yield found._replace(starts=found.starts + start)


def _window(text: str, encode: Callable[[list[str]], list[Located]], start: int, length: int) -> Located:
    found = encode([text[start : start + length]])[0]
    return found._replace(starts=found.starts + start)


def _same(a: Located, b: Located) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
