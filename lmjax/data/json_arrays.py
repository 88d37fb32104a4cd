"""Reads the objects of a JSON array one by one; after a bad object, the objects that follow are still read.

Brackets and quotes determine where an object ends. If they do not match, the next object is assumed to begin at the
next line with the indentation of the bad object's first line, because programs that write each object on separate lines
indent all objects equally.
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
        number: of the line, from 1.
        text: with the line feed, if it includes the end of the line.
        begins: whether it is the beginning of the line.
    """

    number: int
    text: str
    begins: bool


class _Element(NamedTuple):
    """The text between two commas of the array.

    Attributes:
        pieces: the lines, or parts of lines, of the text.
        end: the comma or bracket after it; empty if its end was not found.
        fault: why its end was not found, or that it is too long; empty otherwise.
    """

    pieces: list[_Piece]
    end: str
    fault: str = ""


def array_elements(
    path: str, file: BinaryIO, faults: Faults, *, load: Callable[[str], Any], max_bytes: int
) -> Iterator[tuple[int, Any]]:
    """Yields the number of the first line and the value of each valid element of the array in a file.

    Args:
        path: of the file, for messages.
        file: its bytes; the first byte that is not white space is an opening bracket.
        faults: handles bad elements.
        load: parses the text of an element; may raise ValueError or RecursionError.
        max_bytes: the largest size of an element's text.
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
            break  # the array is empty, or there is a comma after its last element
        try:
            value = fault or load(text)
        except (ValueError, RecursionError) as error:
            fault = f"not JSON ({error})"
        if not fault:
            yield number, value
            continue
        faults.bad(f"{path}:{number}: {fault}; correct this element of the array")
        end = _resume(source, pieces, end)
    if end and (number := source.next_text()):
        faults.bad(f"{path}:{number}: text after the end of the array; a .json file holds one array, or lines")


class _Source:
    """Reads text line by line, or in parts of long lines, which can be put back.

    Attributes:
        number: of the line that is read next from the file.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self.number, self._begins = 1, True
        self._ahead: collections.deque[_Piece] = collections.deque()

    def take(self) -> _Piece | None:
        """Returns the next piece; None at the end."""
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
        """Puts pieces back, so that they are read next."""
        self._ahead.extendleft(piece for piece in reversed(pieces) if piece.text)

    def pass_opening(self) -> None:
        """Reads the bracket that opens the array, and the white space before it."""
        while (piece := self.take()) and not piece.text.strip():
            pass
        self.give_back([piece._replace(text=piece.text[piece.text.index("[") + 1 :], begins=False)])

    def next_text(self) -> int | None:
        """Returns the line number of the next piece that is not white space; None if there is none."""
        return next((piece.number for piece in iter(self.take, None) if piece.text.strip()), None)


def _element(source: _Source, max_bytes: int) -> _Element:
    """Returns the next element; its end is "" if a quote or bracket does not match, or the file ends within it."""
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
                fault = "a line ends within quotes" if sign == "\n" else f"{sign!r} without its opening bracket"
                return _Element([*pieces, piece._replace(text=text[:at])], "", fault)
        at = max(0, at - len(text))  # an escaped character may be in the next piece
        pieces.append(piece)
        if size > max_bytes:
            if _next_line(pieces) is not None:
                return _Element(pieces, "", too_long)
            del pieces[_first(pieces) + 1 :]
    return _Element(pieces or [_Piece(source.number, "", False)], "", "the file ends within the array")


def _resume(source: _Source, pieces: list[_Piece], end: str) -> str:
    """Returns the comma or bracket after a bad element, and moves the source there; "" if the file ends.

    Args:
        source: from which the bad element was read.
        pieces: of the bad element.
        end: the comma or bracket after it, if its brackets match.
    """
    begin = _next_line(pieces)
    if begin is not None:
        # The text read as the bad element includes the elements after it; `end` follows the last of these.
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
    """Returns the index of the piece of a bad element at which the next element begins; None if there is none."""
    first = pieces[_first(pieces)]
    indent = first.text[: len(first.text) - len(first.text.lstrip())] if first.begins else None
    return next((i for i, piece in enumerate(pieces) if piece is not first and _alike(piece, indent)), None)


def _first(pieces: list[_Piece]) -> int:
    """Returns the index of the first piece that is not white space; 0 if there is none."""
    return next((i for i, piece in enumerate(pieces) if piece.text.strip()), 0)


def _alike(piece: _Piece, indent: str | None) -> bool:
    """Returns whether a line begins with `indent`, or any white space if it is None, and then an object."""
    text = piece.text.lstrip()
    return piece.begins and text.startswith("{") and indent in (None, piece.text[: len(piece.text) - len(text)])
