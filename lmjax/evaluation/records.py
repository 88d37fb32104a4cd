"""Records with named fields, from JSONL and CSV files; every fault is named by file and line."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lmjax.data.files import find_files, suffix
from lmjax.errors import DataError
from lmjax.inference.score.score import Question

Fields = Mapping[str, Any]


def read_fields(path: str) -> Iterator[tuple[str, Fields]]:
    """Yields where each record of a file stands, and its fields.

    Args:
        path: .jsonl, .json (one object a line), .csv or .tsv (with a header), also with .gz.

    Raises:
        DataError: the file cannot be read, or a record is none.
    """
    readers = {".jsonl": _json_lines, ".json": _json_lines, ".csv": _csv_rows, ".tsv": _csv_rows}
    if suffix(path) not in readers:
        raise DataError(f"{path}: not a file of records; name a .jsonl, .csv or .tsv file (also .gz)")
    try:
        with gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb") as file:
            yield from readers[suffix(path)](path, _lines(path, file))
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DataError(f"{path}: the gzip file is truncated or damaged ({e}); copy it again") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e


def _lines(path: str, file: Any) -> Iterator[tuple[int, str]]:
    """Yields line numbers from 1 and lines."""
    for number, line in enumerate(file, 1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as e:
            raise DataError(f"{path}:{number}: not UTF-8 (the line's byte {e.start + 1}); convert the file") from e


def _json_lines(path: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Fields]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{path}:{number}: not JSON ({e}); each line must hold one whole object") from e
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: a JSON {type(value).__name__}; each line must hold one whole object")
        yield f"{path}:{number}", value


def _csv_rows(path: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Fields]]:
    tabs = suffix(path) == ".tsv"
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    rows = csv.reader((line for _, line in lines), delimiter="\t" if tabs else ",", quoting=quoting, strict=True)
    header: list[str] | None = None
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as e:
            raise DataError(f"{path}:{first}: {e}; quote the field, or double the quotes inside it") from e
        if row is None:
            return
        if not row:
            continue
        if header is None:
            header = row
        elif len(row) != len(header):
            raise DataError(f"{path}:{first}: {len(row)} fields, and the header has {len(header)}; mend the row")
        else:
            yield f"{path}:{first}", dict(zip(header, row, strict=True))


def read_task(spec: str, parse: Callable[[str, Fields], Any]) -> tuple[list[str], list[Any]]:
    """Returns where the records of a file or a glob of files stand, and what `parse` makes of each.

    Raises:
        DataError: there is no file, no record in it, or a bad one.
    """
    names, found = [], []
    for path in find_files(spec):
        for where, fields in read_fields(path):
            names.append(where)
            found.append(parse(where, fields))
    if not found:
        raise DataError(f"--data: {spec!r} holds no records; give it at least one")
    return names, found


def _text(where: str, fields: Fields, name: str, needed: str, empty: bool = False) -> str:
    """Returns a field that is a text."""
    value = fields.get(name)
    if not isinstance(value, str):
        wrong = f"{name!r} is no string but {str(value)[:40]!r}" if name in fields else f"no {name!r}"
        raise DataError(f"{where}: {wrong}; {needed}")
    if not value.strip() and not empty:
        raise DataError(f"{where}: {name!r} is empty; {needed}")
    return value


def minimal_pair(where: str, fields: Fields) -> tuple[str, str]:
    """Returns the texts `good` and `bad` of a record."""
    good, bad = (_text(where, fields, name, "a minimal pair needs good and bad") for name in ("good", "bad"))
    return good, bad


def source_target(where: str, fields: Fields) -> tuple[str, str]:
    """Returns the texts `source` and `target` of a record."""
    source, target = (_text(where, fields, name, "a pair needs source and target") for name in ("source", "target"))
    return source, target


def question(where: str, fields: Fields) -> Question:
    """Returns the `context`, the `choices` (a list; in CSV as JSON) and the `answer`, a number from 0, of a record."""
    needed = "a question needs context, choices (a list) and answer (the number of the right one, from 0)"
    context = _text(where, fields, "context", needed, empty=True)
    choices, answer = (_as_json(where, fields, name, needed) for name in ("choices", "answer"))
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise DataError(f"{where}: 'choices' is {str(choices)[:80]!r}, not a list of two or more texts; {needed}")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(f"{where}: 'answer' is {str(answer)[:40]!r}, and there are {len(choices)} choices; {needed}")
    return Question(context, choices, answer)


def _as_json(where: str, fields: Fields, name: str, needed: str) -> Any:
    """Returns a field that is no text; of CSV, where all are, what it says as JSON."""
    if name not in fields:
        raise DataError(f"{where}: no {name!r}; {needed}")
    value = fields[name]
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: {name!r} is {value[:80]!r}, which is not JSON; {needed}") from e
