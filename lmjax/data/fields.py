"""Reads records with named fields from JSONL, JSON arrays, CSV and TSV; errors name the file and line of a record."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from lmjax.data.csv_rows import csv_rows
from lmjax.data.files import MAX_BYTES, Faults, Line, read_file, read_lines, suffix
from lmjax.data.json_arrays import array_elements
from lmjax.errors import DataError

Header = Callable[[str, Sequence[str]], None]
_FORMATS = (".jsonl", ".json", ".csv", ".tsv")


class Fields(dict[str, Any]):
    """The fields of a record by name.

    Attributes:
        repeated: names that occur more than once in the record.
    """

    def __init__(self, pairs: Sequence[tuple[str, Any]]):
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.repeated = frozenset(n for n in names if names.count(n) > 1) if len(self) < len(names) else frozenset()


def field_of(where: str, fields: Fields, name: str, need: str) -> Any:
    """Returns the value of a field that occurs once.

    Args:
        where: file and line of the record, for messages.
        fields: of the record.
        name: of the field.
        need: which fields a record needs, for messages.

    Raises:
        DataError: there is no such field, or more than one.
    """
    if name not in fields:
        raise DataError(f"{where}: no {name!r}; {need}")
    if name in fields.repeated:
        raise DataError(f"{where}: two fields are called {name!r}; rename one")
    return fields[name]


def text_of(where: str, fields: Fields, name: str, need: str) -> str:
    """Returns the value of a field that occurs once and is a string, which may be empty; otherwise raises DataError."""
    value = field_of(where, fields, name, need)
    if not isinstance(value, str):
        raise DataError(f"{where}: {name!r} is {str(value)[:40]!r}, not a string; {need}")
    check_text(where, name, value)
    return value


def check_text(where: str, name: str, value: str) -> None:
    """Raises DataError for a text that cannot be encoded as UTF-8, or contains a NUL."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {name!r} holds half a surrogate pair; remove it") from error
    if "\x00" in value:
        raise DataError(f"{where}: {name!r} holds a NUL; remove it")


def has_fields(path: str) -> bool:
    """Returns whether the file has records with named fields; other files have running text."""
    return suffix(path) in _FORMATS


def read_fields(
    path: str,
    faults: Faults,
    *,
    check_header: Header = lambda where, names: None,
    max_bytes: int = MAX_BYTES,
    header: Sequence[str] = (),
) -> Iterator[tuple[str, Fields]]:
    """Yields the file and line of each record without errors, as `path:line`, and its fields.

    Args:
        path: .jsonl (one object a line), .json (the same, or one array of objects), .csv or .tsv (with a header; quotes
            mean nothing in .tsv), also with .gz.
        faults: handles bad records.
        check_header: called with `path:line` and the names of a header; its DataError is a fault of the whole file.
        max_bytes: the largest size of a line, or of an object in an array; a CSV record may have a quarter of it.
        header: names of the columns of a table that has no header; empty: its first row is the header.

    Raises:
        DataError: the file cannot be opened, or a record is bad and `faults` raises it.
    """
    kind = suffix(path)

    def read(file: BinaryIO) -> Iterator[tuple[str, Fields]]:
        if kind == ".json" and file.peek().lstrip()[:1] == b"[":
            return _array(path, file, faults, max_bytes)
        lines = read_lines(path, file, max_bytes)
        if kind in (".jsonl", ".json"):
            return _json_lines(path, lines, faults)
        return _table(path, lines, faults, kind == ".tsv", check_header, max_bytes, header)

    yield from read_file(path, read, faults)


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=Fields)


def _array(path: str, file: BinaryIO, faults: Faults, max_bytes: int) -> Iterator[tuple[str, Fields]]:
    for number, value in array_elements(path, file, faults, load=_parsed, max_bytes=max_bytes):
        if _is_object(f"{path}:{number}", value, "element of the array", faults):
            yield f"{path}:{number}", value


def _json_lines(path: str, lines: Iterator[Line], faults: Faults) -> Iterator[tuple[str, Fields]]:
    for line in lines:
        where, fault = f"{path}:{line.number}", line.fault
        if fault or not line.text.strip():
            if fault:
                faults.bad(fault)
            continue
        try:
            value = _parsed(line.text)
        except (ValueError, RecursionError) as error:
            faults.bad(f"{where}: not JSON ({error}); each line must hold one whole object")
            continue
        if _is_object(where, value, "line", faults):
            yield where, value


def _is_object(where: str, value: Any, holder: str, faults: Faults) -> bool:
    if not isinstance(value, Fields):
        faults.bad(f"{where}: a JSON {type(value).__name__}, not an object; each {holder} must hold one whole object")
    return isinstance(value, Fields)


def _table(
    path: str,
    lines: Iterator[Line],
    faults: Faults,
    tabs: bool,
    check_header: Header,
    max_bytes: int,
    header: Sequence[str],
) -> Iterator[tuple[str, Fields]]:
    if header:
        check_header(path, header)
    for number, row in csv_rows(
        path, lines, faults, tabs=tabs, max_bytes=max_bytes, columns=len(header) if header else None
    ):
        if not header:
            header = row
            check_header(f"{path}:{number}", header)
        else:
            yield f"{path}:{number}", Fields(list(zip(header, row, strict=True)))
