"""The objects of a JSON array, one by one; a bad one is found, and passed over, without its neighbours.

Brackets and quotes decide where an object ends. Where they do not match, the next object is taken to begin at the next
line that begins as the bad one's line does: writers that put each object on lines of its own indent all alike.
"""

import codecs
import collections
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from lmjax.data.files import Faults

_PIECE_BYTES = 2**14
_OUTSIDE = re.compile(r'["\[\]{},]')
_INSIDE = re.compile(r'["\\\n]')
_UNREADABLE = re.compile("[\0\udc80-\udcff]")
_OPENED_BY = {"]": "[", "}": "{"}


class _Piece(NamedTuple):
    """A line or a part of one.

    Attributes:
        number: of the line.
        text: with its line feed, if it reaches so far.
        begins: whether the line begins with it.
    """

    number: int
    text: str
    begins: bool


class _Element(NamedTuple):
    """What stands between two commas of the array.

    Attributes:
        pieces: of its text.
        end: the comma or bracket behind it; empty if it does not end.
        fault: why it does not end.
    """

    pieces: list[_Piece]
    end: str
    fault: str = ""


def array_elements(
    path: str, file: BinaryIO, faults: Faults, *, load: Callable[[str], Any], max_bytes: int
) -> Iterator[tuple[int, Any]]:
    """The first line and the value of each sound element of the array that a file holds.

    Args:
        path: of the file, for messages.
        file: its bytes, of which the first that is not white space is an opening bracket.
        faults: what becomes of bad elements.
        load: parses the text of an element; raises ValueError or RecursionError.
        max_bytes: of an element's text.
    """
    source = _Source(file)
    source.pass_opening()
    end = ","
    while end == ",":
        pieces, end, fault = _element(source, max_bytes)
        text = "".join(piece.text for piece in pieces)
        number = pieces[0].number + text[: len(text) - len(text.lstrip())].count("\n")
        if bad := _UNREADABLE.search(text):
            fault = "a NUL byte" if bad[0] == "\0" else f"not UTF-8 (byte 0x{ord(bad[0]) - 0xDC00:02x})"
            number = pieces[0].number + text[: bad.start()].count("\n")
        if not text.strip() and end == "]":
            break  # the array is empty, or there is a comma behind its last element
        try:
            value = fault or load(text)
        except (ValueError, RecursionError) as error:
            fault = f"not JSON ({error})"
        if not fault:
            yield number, value
            continue
        faults.bad(f"{path}:{number}: {fault}; mend this element of the array")
        end = _resume(source, pieces, end)
    if end and (number := source.next_text()):
        faults.bad(f"{path}:{number}: text behind the end of the array; a .json file holds one array, or lines")


class _Source:
    """Text in pieces, which can be given back.

    Attributes:
        number: of the line that is read next.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self.number, self._begins = 1, True
        self._ahead: collections.deque[_Piece] = collections.deque()

    def take(self) -> _Piece | None:
        """The next piece; None at the end."""
        if self._ahead:
            return self._ahead.popleft()
        data = self._file.readline(_PIECE_BYTES)
        if not data:
            return None
        piece = _Piece(self.number, self._decode(data), self._begins)
        self._begins = data.endswith(b"\n")
        self.number += self._begins
        return piece

    def give_back(self, pieces: list[_Piece]) -> None:
        """Makes these the next pieces."""
        self._ahead.extendleft(piece for piece in reversed(pieces) if piece.text)

    def pass_opening(self) -> None:
        """Takes the bracket that opens the array, and the white space in front of it."""
        while (piece := self.take()) and not piece.text.strip():
            pass
        self.give_back([piece._replace(text=piece.text[piece.text.index("[") + 1 :], begins=False)])

    def next_text(self) -> int | None:
        """The line of the next piece that is not white space; None if there is none."""
        return next((piece.number for piece in iter(self.take, None) if piece.text.strip()), None)


def _element(source: _Source, max_bytes: int) -> _Element:
    """The next element; a quote, a bracket or the file that ends too early ends it without an end."""
    pieces: list[_Piece] = []
    brackets: list[str] = []
    quoted, at, size = False, 0, 0
    too_long = f"an element of more than {max_bytes} characters"
    while piece := source.take():
        text = piece.text
        size += len(text)
        while match := (_INSIDE if quoted else _OUTSIDE).search(text, at):
            sign, at = match[0], match.end()
            if sign == '"':
                quoted = not quoted
            elif sign == "\\":
                at += 1
            elif sign in "[{":
                brackets.append(sign)
            elif sign in ",]" and not brackets:
                source.give_back([piece._replace(text=text[at:], begins=False)])
                fault = too_long if size - len(text) + at > max_bytes else ""
                return _Element([*pieces, piece._replace(text=text[: at - 1])], sign, fault)
            elif sign == "\n" or (sign != "," and _OPENED_BY[sign] != (brackets.pop() if brackets else "")):
                source.give_back([piece._replace(text=text[at:], begins=False)])
                fault = "a line ends within quotes" if sign == "\n" else f"{sign!r} closes nothing"
                return _Element([*pieces, piece._replace(text=text[:at])], "", fault)
        at = max(0, at - len(text))  # an escaped character may be the next piece's
        pieces.append(piece)
        if size > max_bytes:
            if _next_line(pieces) is not None:
                return _Element(pieces, "", too_long)
            del pieces[_first(pieces) + 1 :]
    return _Element(pieces or [_Piece(source.number, "", False)], "", "the file ends within the array")


def _resume(source: _Source, pieces: list[_Piece], end: str) -> str:
    """What stands behind a bad element, once the source is where the next one begins; empty: there is no more.

    Args:
        source: where the bad element was read.
        pieces: of the bad element.
        end: what stands behind it, if its brackets match.
    """
    begin = _next_line(pieces)
    if begin is not None:
        # The comma or bracket behind the bad element is behind the last one found in it.
        source.give_back([*pieces[begin:], pieces[-1]._replace(text=end, begins=False)])
        return ","
    if end:
        return end
    while piece := source.take():
        if _next_line([*pieces, piece]) is not None:
            source.give_back([piece])
            return ","
    return ""


def _next_line(pieces: list[_Piece]) -> int | None:
    """Which of the pieces of a bad element is the next element's line; None if none is."""
    first = pieces[_first(pieces)]
    indent = first.text[: len(first.text) - len(first.text.lstrip())] if first.begins else None
    return next((i for i, piece in enumerate(pieces) if piece is not first and _alike(piece, indent)), None)


def _first(pieces: list[_Piece]) -> int:
    """Which of the pieces is the first that is not white space."""
    return next((i for i, piece in enumerate(pieces) if piece.text.strip()), 0)


def _alike(piece: _Piece, indent: str | None) -> bool:
    """Whether a line begins with an object, after this white space or, if it is None, after any."""
    text = piece.text.lstrip()
    return piece.begins and text.startswith("{") and indent in (None, piece.text[: len(piece.text) - len(text)])
