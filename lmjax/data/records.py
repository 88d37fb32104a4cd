"""Reads texts and (source, target) pairs from files with named fields, and texts from files of running text."""

import functools
from collections.abc import Collection, Iterator, Sequence
from typing import BinaryIO, Literal, NamedTuple

from lmjax.data.fields import Fields, has_fields, read_fields, text_of
from lmjax.data.files import MAX_BYTES, Faults, Line, read_file, read_lines
from lmjax.errors import DataError

Documents = Literal["files", "paragraphs", "lines"]
_HINT = " (text_field, source_field and target_field name others)"
_TOO_LONG = {
    "files": "split the file, or make what stands between blank lines a document (data.documents=paragraphs)",
    "paragraphs": "set blank lines between its documents, or make each line one (data.documents=lines)",
    "lines": "break the line up",
}
_JOINED_LINES = 4096  # so many lines are joined into one string, because short strings take much more memory


class Record(NamedTuple):
    """A pair of texts, or a text, whose `target` is None."""

    source: str
    target: str | None = None


class FieldNames(NamedTuple):
    """The names of the field of a text and of the fields of a pair."""

    text: str = "text"
    source: str = "source"
    target: str = "target"

    def wanted(self, known: Collection[str], pairs: bool) -> tuple[str, ...]:
        """Returns the fields to read from a record that has the fields `known`: the text, or source and target."""
        if pairs or (self.text not in known and (self.source in known or self.target in known)):
            return self.source, self.target
        return (self.text,)

    def need(self, pairs: bool) -> str:
        """Returns the part of an error message that says which fields a record needs."""
        pair = f"{self.source} and {self.target}"
        return f"a pair needs {pair}" if pairs else f"a record needs {self.text}, or {pair}"


USUAL_NAMES = FieldNames()


def read_records(
    path: str,
    faults: Faults,
    *,
    pairs: bool,
    documents: Documents = "paragraphs",
    names: FieldNames = USUAL_NAMES,
    max_bytes: int = MAX_BYTES,
    header: Sequence[str] = (),
) -> Iterator[Record]:
    """Yields the records of one file.

    Args:
        path: the file; its suffix decides the format.
        faults: handles bad records.
        pairs: whether every record must be a pair; otherwise a record with both a text and a pair is read as a text.
        documents: what is one document of running text: a file, the text between blank lines, or a line.
        names: names of the fields.
        max_bytes: the largest size of a document of running text, or of a line; a larger one is a bad record.
        header: names of the columns of a table that has no header; empty: its first row is the header.

    Raises:
        DataError: a record is bad and `faults` raises it, or the file cannot be read.
    """
    if not has_fields(path):
        if pairs:
            faults.bad(f"{path}: plain text, and pairs are needed: JSONL or CSV/TSV with source and target")
            return
        yield from read_file(path, functools.partial(_texts, path, faults, documents, max_bytes), faults)
        return

    def check_header(where: str, header: Sequence[str]) -> None:
        wanted = names.wanted(header, pairs)
        if missing := [name for name in wanted if name not in header]:
            named = " and no ".join(map(repr, missing))
            raise DataError(f"{where}: the header {str(list(header))[:200]} has no {named}; {names.need(pairs)}{_HINT}")
        if repeated := [name for name in wanted if header.count(name) > 1]:
            raise DataError(f"{where}: {header.count(repeated[0])} columns are called {repeated[0]!r}; rename one")

    for where, fields in read_fields(path, faults, check_header=check_header, max_bytes=max_bytes, header=header):
        try:
            record = _record(where, fields, pairs, names)
        except DataError as error:
            faults.bad(str(error))
            continue
        if record.source.strip():
            yield record


def _record(where: str, fields: Fields, pairs: bool, names: FieldNames) -> Record:
    """Returns the record in named fields; its text may be empty, but neither text of a pair."""
    wanted = names.wanted(fields, pairs)
    texts = [text_of(where, fields, name, names.need(pairs) + _HINT) for name in wanted]
    for name, text in zip(wanted, texts, strict=True):
        if len(wanted) == 2 and not text.strip():
            raise DataError(f"{where}: {name!r} is empty; remove the record")
    return Record(*texts)


def _texts(path: str, faults: Faults, documents: Documents, max_bytes: int, file: BinaryIO) -> Iterator[Record]:
    """Yields the documents of running text that have no bad line."""
    lines = read_lines(path, file, max_bytes)
    text = _Text(path, max_bytes, _TOO_LONG[documents])
    for line in lines:
        blank = line.text.isspace()
        if documents == "lines" or (blank and documents == "paragraphs"):
            if not blank:
                text.add(line)
            yield from text.taken(faults, strip=True)
        else:
            text.add(line)
    yield from text.taken(faults, strip=documents != "files")


class _Text:
    """Collects the lines of a document, up to a maximum size."""

    def __init__(self, path: str, max_bytes: int, remedy: str):
        self._path, self._max_bytes, self._remedy = path, max_bytes, remedy
        self._clear()

    def _clear(self) -> None:
        self._joined: list[str] = []
        self._lines: list[str] = []
        self._size = 0
        self._fault = ""

    def add(self, line: Line) -> None:
        """Appends a line; after a fault the document is dropped, and only the fault is stored."""
        self._size += line.size
        if self._size > self._max_bytes and not line.fault:
            line = line._replace(
                fault=f"{self._path}:{line.number}: a text of more than {self._max_bytes} bytes; {self._remedy}"
            )
        self._fault = self._fault or line.fault
        if self._fault:
            self._joined, self._lines = [], []
            return
        self._lines.append(line.text)
        if len(self._lines) >= _JOINED_LINES:
            self._joined.append("".join(self._lines))
            self._lines = []

    def taken(self, faults: Faults, strip: bool) -> Iterator[Record]:
        """Yields the document unless it is empty or has a fault, which goes to `faults`; then begins the next one.

        Args:
            faults: handles a fault of the document.
            strip: whether the line feed at the end is removed.
        """
        text, fault = "".join([*self._joined, *self._lines]), self._fault
        self._clear()
        if fault:
            faults.bad(fault)
        elif text.strip():
            yield Record(text.removesuffix("\n") if strip else text)
