"""Rows of CSV and TSV, which a fault costs one record and no neighbour.

Quotes decide where a record ends, so lines with bad bytes are parsed with the others, and a quote in the wrong place is
the one fault after which the end of a record is in doubt. Then:

* If the lines after the record's first one are sound rows, a quote was left open there, and these lines are records.
* If only the last line begins a sound row, the record was not closed in front of it.
* Else the record ends where a lenient reader (Python's without `strict`) ends it.

Right after a bad record a line with an odd number of quotes, which no well quoted row has, belongs to it.
"""

import collections
import contextlib
import csv
import re
from collections.abc import Iterator

from lmjax.data.files import Faults, Line
from lmjax.errors import DataError

_TRIED_LINES = 20
_WELL_QUOTED = re.compile(r'(?:"(?:[^"]|"")*+"|[^",\n]*+)(?:,(?:"(?:[^"]|"")*+"|[^",\n]*+))*+\n?')
_BYTES_PER_CHARACTER = 4  # in which Python's reader holds a field
_NO_LIMIT = 2**31 - 1  # records are bounded as a whole

Row = tuple[int, list[str]]


def csv_rows(path: str, lines: Iterator[Line], faults: Faults, *, tabs: bool, max_bytes: int) -> Iterator[Row]:
    """The first line and the fields of each sound row, the header first; blank lines are no rows.

    Args:
        path: of the file, for messages.
        lines: all lines of the file.
        faults: what becomes of bad rows.
        tabs: whether tabs separate fields and quotes mean nothing, as in TSV.
        max_bytes: the memory for a record while it is parsed.

    Raises:
        DataError: the header is bad, or a record is past the bound and what follows cannot be told from it.
    """
    csv.field_size_limit(_NO_LIMIT)
    source = _Source(lines, max_bytes // _BYTES_PER_CHARACTER)
    rows = _reader(source, tabs, strict=True)
    width, doubt = None, False
    while True:
        source.taken.clear()
        try:
            row = next(rows, None)
        except csv.Error as error:
            message = _misquoted(path, source.taken, error)
            if width is None:
                raise DataError(message) from error
            if not _passes_over(source, width):
                raise DataError(f"{message}; the rest of the file cannot be told from it") from error
            faults.bad(message)
            doubt = True
            continue
        if row is None:
            return
        first = source.taken[0].number
        fault = next((line.fault for line in source.taken if line.fault), "")
        if fault and width is None:
            raise DataError(fault)
        if width is None and row:
            width = len(row)
        if not fault and row and len(row) != width:
            fault = f"{path}:{first}: {len(row)} fields, and the header has {width}; mend the row"
        if not fault and doubt and not tabs and sum(line.text.count('"') for line in source.taken) % 2:
            continue  # a line with half a pair of quotes belongs to the bad record in front of it
        if fault:
            faults.bad(fault)
        elif row:
            yield first, row
        doubt = bool(fault)


class _Source:
    """The lines that a reader takes, which can be given back.

    Attributes:
        taken: the lines since the record began.
        full: whether they are more than a record may have.
    """

    def __init__(self, lines: Iterator[Line], max_bytes: int):
        self._lines = lines
        self._ahead: collections.deque[Line] = collections.deque()
        self._max_bytes = max_bytes
        self.taken: list[Line] = []
        self.full = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._lines)
        self._size = line.size + (self._size if self.taken else 0)
        self.taken.append(line)
        self.full = self._size > self._max_bytes
        if self.full:
            raise csv.Error(f"a record of more than {self._max_bytes} bytes")
        return line.text

    def give_back(self, lines: list[Line]) -> None:
        """Makes these the next lines."""
        self._ahead.extendleft(reversed(lines))
        self.taken.clear()

    def drop(self, count: int) -> None:
        """Takes lines that were given back out again."""
        for _ in range(count):
            self._ahead.popleft()


def _reader(source: _Source, tabs: bool, *, strict: bool) -> Iterator[list[str]]:
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    return csv.reader(source, delimiter="\t" if tabs else ",", quoting=quoting, strict=strict)


def _misquoted(path: str, taken: list[Line], error: csv.Error) -> str:
    first, last = taken[0].number, taken[-1].number
    said = str(error).split(" - ")[0]  # without advice about Python's `open`
    until = f" (up to line {last})" if last > first else ""
    return f"{path}:{first}: {said}{until}; close the quotes, quote the field, or double the quotes inside it"


def _passes_over(source: _Source, width: int) -> bool:
    """Whether it can be told where the bad record ends; gives back what of the lines taken is not of it."""
    taken, full = list(source.taken), source.full
    # The quote at which the parser stumbled may open a field of the last line.
    stumbled = not full and '"' in taken[-1].text
    for begin in dict.fromkeys((1, len(taken) - 1) if stumbled else (1,)):
        if 0 < begin < len(taken):
            source.give_back(taken[begin:])
            if _sound(source, len(taken) - begin, width):
                return True
            source.drop(len(taken) - begin)
    source.give_back(taken)
    if not full:
        # A lone carriage return outside quotes ends a record for any reader: what it took is the bad one.
        with contextlib.suppress(csv.Error):
            next(_reader(source, tabs=False, strict=False), None)
    return not (full or source.full)


def _sound(source: _Source, count: int, width: int) -> bool:
    """Whether the next `count` lines, or the first records of them, are well quoted rows of a width; takes none."""
    rows, tried, sound = _reader(source, tabs=False, strict=True), [], True
    while sound and len(tried) < count and len(tried) < _TRIED_LINES:
        source.taken.clear()
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error:
            sound = False
        else:
            text = "".join(line.text for line in source.taken)
            sound = not row or (len(row) == width and _WELL_QUOTED.fullmatch(text) is not None)
        tried += source.taken
    source.give_back(tried)
    return sound
