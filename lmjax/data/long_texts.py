"""Encodes a text of any length in bounded memory: in windows, with the same tokens as if encoded at once.

The libraries need about 200 bytes per character, so a text is cut into overlapping windows, and the tokens of two
adjacent windows are joined at a point where the encoding of the whole text is certain to have the same tokens:

1. In the middle half of the overlap both windows must have the same tokens at the same characters. The ends of a window
   can change the tokens next to them (a space is added, white space is removed, a word is cut), but not those there.
2. There the windows are joined at a token that begins a part made by the pre-tokenizer: the model encodes each part
   separately, and a part depends only on the text from its beginning on. If the pre-tokenizer makes no cut there, the
   windows are joined between two tokens that no token of the vocabulary can span: none contains the last byte of the
   first followed by the first byte of the second. In BPE any two adjacent tokens will do: a sequence of tokens is the
   encoding of its text if and only if each two adjacent tokens are the encoding of their text, because the first merge
   across a boundary would also be made in the text of these two tokens alone.

If there is no such point (a megabyte of one letter), the left window is made twice as long, up to the end of the text.
Such a text needs memory for its whole encoding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

WINDOW = 2**18  # characters
OVERLAP = 2**13
_GROUP = 16  # windows that are encoded at the same time


class Located(NamedTuple):
    """The tokens of a text and where they begin.

    Attributes:
        ids: int32 `[tokens]`.
        starts: int64 `[tokens]`, the index of the character at which each token begins; never decreasing.
        parts: bool `[tokens]`, whether the token begins a part made by the pre-tokenizer.
    """

    ids: np.ndarray
    starts: np.ndarray
    parts: np.ndarray

    def part(self, start: int, stop: int | None = None) -> "Located":
        """Returns the tokens `start` to `stop - 1`, or to the last one."""
        return Located(*(column[start:stop] for column in self))


class Joints:
    """Finds the token at which two windows can be joined; the docstring of this module has the rules."""

    def __init__(self, pieces: Sequence[bytes], any_pair: bool):
        """Prepares the rules for a vocabulary.

        Args:
            pieces: the bytes that each id represents.
            any_pair: whether windows may be joined between any two tokens that both have, as in BPE.
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
        """Returns the index, in each window, of the first token after the joint; None if there is no safe joint.

        Args:
            left: the window that ends in the overlap.
            right: the window that begins in it.
            low: index of the first character at which both must have the same tokens.
            high: index of the character up to which (exclusive) both must have the same tokens.
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
    """Returns the tokens of a text, encoded in windows.

    Args:
        text: of any length.
        encode: returns the tokens of each of several texts.
        joints: of the vocabulary.
    """
    done: list[Located] = []
    step = WINDOW - OVERLAP
    windows = _windows(text, encode, step)
    # `left` covers `many` windows from number `first` on; its tokens before index `begin` are already in `done`.
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
            return encode([text])[0]  # the longer window has other tokens at the last joint, so it was not safe
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
