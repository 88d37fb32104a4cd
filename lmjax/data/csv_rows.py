"""Reads the rows of CSV and TSV files; after a bad record, the records that follow are still read.

Quotes determine where a record ends. Lines with bad bytes are therefore parsed like the others, and only after a quote
in the wrong position is it unclear where the bad record ends. Then:

* If the lines after the record's first line are valid rows, the first line has a quote that was not closed, and the
  other lines are records.
* If only the last line begins a valid row, the bad record consists of the lines before it.
* Otherwise the bad record ends where a lenient reader (Python's without `strict`) ends it.

A line with an odd number of quotes directly after a bad record belongs to that record, because no correctly quoted row
has an odd number.
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
_BYTES_PER_CHARACTER = 4  # in the buffer in which Python's reader collects a field
_NO_LIMIT = 2**31 - 1  # of a field, because the size of a whole record is limited

Row = tuple[int, list[str]]


def csv_rows(
    path: str, lines: Iterator[Line], faults: Faults, *, tabs: bool, max_bytes: int, columns: int | None = None
) -> Iterator[Row]:
    """Yields the number of the first line and the fields of each valid row, the header first; skips blank lines.

    Args:
        path: of the file, for messages.
        lines: all lines of the file.
        faults: handles bad rows.
        tabs: whether tabs separate the fields and quotes have no special meaning, as in TSV.
        max_bytes: the most memory for parsing one record.
        columns: the number of fields of each row of a file without a header; None: the first row is a header.

    Raises:
        DataError: the header is bad, or a record is too large and its end cannot be found.
    """
    csv.field_size_limit(_NO_LIMIT)
    source = _Source(lines, max_bytes // _BYTES_PER_CHARACTER)
    rows = _reader(source, tabs, strict=True)
    width, doubt = columns, False
    while True:
        source.taken.clear()
        try:
            row = next(rows, None)
        except csv.Error as error:
            message = _misquoted(path, source.taken, error)
            if width is None:
                raise DataError(message) from error
            if not _passes_over(source, width):
                raise DataError(f"{message}; the end of the record cannot be found") from error
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
            wanted = f"the header has {width}" if columns is None else f"{width} columns are named"
            fault = f"{path}:{first}: {len(row)} fields, but {wanted}; correct the row"
        if not fault and doubt and not tabs and sum(line.text.count('"') for line in source.taken) % 2:
            continue  # with an odd number of quotes, the lines belong to the bad record before them
        if fault:
            faults.bad(fault)
        elif row:
            yield first, row
        doubt = bool(fault)


class _Source:
    """The lines of a file as an iterator for a CSV reader; lines can be put back.

    Attributes:
        taken: the lines that were read since the record began.
        full: whether they are larger than a record may be.
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
        """Puts lines back, so that they are read next."""
        self._ahead.extendleft(reversed(lines))
        self.taken.clear()

    def drop(self, count: int) -> None:
        """Removes the first `count` of the lines that were put back."""
        for _ in range(count):
            self._ahead.popleft()


def _reader(source: _Source, tabs: bool, *, strict: bool) -> Iterator[list[str]]:
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    return csv.reader(source, delimiter="\t" if tabs else ",", quoting=quoting, strict=strict)


def _misquoted(path: str, taken: list[Line], error: csv.Error) -> str:
    first, last = taken[0].number, taken[-1].number
    said = str(error).split(" - ")[0]  # without the advice about Python's `open`
    until = f" (up to line {last})" if last > first else ""
    return f"{path}:{first}: {said}{until}; close the quotes, quote the field, or double the quotes inside it"


def _passes_over(source: _Source, width: int) -> bool:
    """Returns whether the end of the bad record was found; puts back the lines that do not belong to it."""
    taken, full = list(source.taken), source.full
    # The quote that caused the error may open a field in the last line.
    stumbled = not full and '"' in taken[-1].text
    for begin in dict.fromkeys((1, len(taken) - 1) if stumbled else (1,)):
        if 0 < begin < len(taken):
            source.give_back(taken[begin:])
            if _sound(source, len(taken) - begin, width):
                return True
            source.drop(len(taken) - begin)
    source.give_back(taken)
    if not full:
        # A single carriage return outside quotes ends a record even for the lenient reader, with an error. The lines
        # that it has taken are then the bad record.
        with contextlib.suppress(csv.Error):
            next(_reader(source, tabs=False, strict=False), None)
    return not (full or source.full)


def _sound(source: _Source, count: int, width: int) -> bool:
    """Returns whether the next `count` lines, or the first of them, are correctly quoted rows of `width` fields.

    The lines are put back.
    """
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
