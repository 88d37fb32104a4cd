"""Texts and pairs of files: of named fields, or running text cut into documents."""

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
_JOINED_LINES = 4096  # many short strings need far more memory than one long one


class Record(NamedTuple):
    """A text (`target` is None), or a pair."""

    source: str
    target: str | None = None


class FieldNames(NamedTuple):
    """What the fields of a text, and of a pair, are called."""

    text: str = "text"
    source: str = "source"
    target: str = "target"

    def wanted(self, known: Collection[str], pairs: bool) -> tuple[str, ...]:
        """The fields that make a record of those that are there."""
        if pairs or (self.text not in known and (self.source in known or self.target in known)):
            return self.source, self.target
        return (self.text,)

    def need(self, pairs: bool) -> str:
        """What to say where one is missing."""
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
) -> Iterator[Record]:
    """The records of one file.

    Args:
      path: the file; its suffix decides the format.
      faults: what becomes of bad records.
      pairs: whether every record must be a pair; else a record that has both is read as a text.
      documents: what one document of running text is: a file, what stands between blank lines, or a line.
      names: of the fields.
      max_bytes: of a document of running text, or of a line; more is a bad record.

    Raises:
      DataError: a record is bad and `faults` wants an error, or the file cannot be read at all.
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

    for where, fields in read_fields(path, faults, check_header=check_header, max_bytes=max_bytes):
        try:
            record = _record(where, fields, pairs, names)
        except DataError as error:
            faults.bad(str(error))
            continue
        if record.source.strip():
            yield record


def _record(where: str, fields: Fields, pairs: bool, names: FieldNames) -> Record:
    """The record that named fields hold; its text may be empty."""
    wanted = names.wanted(fields, pairs)
    texts = [text_of(where, fields, name, names.need(pairs) + _HINT) for name in wanted]
    for name, text in zip(wanted, texts, strict=True):
        if len(wanted) == 2 and not text.strip():
            raise DataError(f"{where}: {name!r} is empty; remove the record")
    return Record(*texts)


def _texts(path: str, faults: Faults, documents: Documents, max_bytes: int, file: BinaryIO) -> Iterator[Record]:
    """The documents of running text, each sound as a whole."""
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
    """A document that grows line by line, up to a bound."""

    def __init__(self, path: str, max_bytes: int, remedy: str):
        self._path, self._max_bytes, self._remedy = path, max_bytes, remedy
        self._clear()

    def _clear(self) -> None:
        self._joined: list[str] = []
        self._lines: list[str] = []
        self._size = 0
        self._fault = ""

    def add(self, line: Line) -> None:
        """Appends a line; past a fault nothing more is kept."""
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
        """The document, if there is a sound one, without its last line feed if `strip`; the next one begins."""
        text, fault = "".join([*self._joined, *self._lines]), self._fault
        self._clear()
        if fault:
            faults.bad(fault)
        elif text.strip():
            yield Record(text.removesuffix("\n") if strip else text)
