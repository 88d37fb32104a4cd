"""Records of text, JSON and CSV files, streamed; every fault is named by file and line."""

import csv
import glob
import gzip
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Collection, Iterator
from typing import BinaryIO, Literal, NamedTuple

from lmjax.errors import DataError

MAX_BYTES = 256 * 2**20  # of a line, or of a document of text: more is refused, so that memory stays bounded

_NEED = {False: "a record needs text, or source and target", True: "a pair needs source and target"}

_log = logging.getLogger(__name__)


class Record(NamedTuple):
    """A text (`target` is None), or a pair."""

    source: str
    target: str | None = None


class Faults:
    """What becomes of bad records: the first one ends the command, or all are left out, counted and reported.

    Attributes:
      first: what was wrong with the first one; empty while there is none.
    """

    def __init__(self, action: Literal["error", "skip"]):
        self._action = action
        self._count = 0
        self.first = ""

    def bad(self, message: str) -> None:
        """Notes one bad record.

        Raises:
          DataError: bad records are errors.
        """
        if self._action == "error":
            raise DataError(message)
        self.first = self.first or message
        self._count += 1

    def report(self) -> None:
        """Logs the number of records left out and the first reason."""
        if self._count:
            _log.warning("%d bad records left out; the first: %s", self._count, self.first)


def find_files(spec: str) -> list[str]:
    """The files that a path or a glob (`**` descends) names, in sorted order.

    Raises:
      DataError: there is none, or it is a directory.
    """
    path = os.path.expanduser(spec)
    if os.path.isdir(path):
        raise DataError(f"--data: {spec!r} is a directory; name its files, as in '{spec.rstrip('/')}/**/*.txt'")
    if os.path.exists(path):
        return [path]
    paths = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
    if not paths:
        raise DataError(f"--data: no file matches {spec!r}; give a file's path or a quoted glob, as 'corpus/**/*.txt'")
    return paths


def suffix(path: str) -> str:
    """The suffix that decides the format, in small letters, without .gz."""
    name = path.lower().removesuffix(".gz")
    return pathlib.PurePath(name).suffix


def is_text(path: str) -> bool:
    """Whether the file holds running text rather than records with fields."""
    return suffix(path) not in _READERS


def read_records(path: str, *, pairs: bool, whole: bool, faults: Faults) -> Iterator[Record]:
    """The records of one file.

    Args:
      path: the file; its suffix decides the format.
      pairs: whether every record must be a pair; else a record that has both is read as a text.
      whole: whether a text file is one record; else it is split at blank lines.
      faults: what becomes of bad records.

    Raises:
      DataError: a record is bad and `faults` wants an error, or the file cannot be read at all.
    """
    reader = _READERS.get(suffix(path))
    try:
        with _open(path) as file:
            before = os.stat(path)
            lines = _lines(path, file, faults if reader else Faults("error"))
            if reader is not None:
                yield from reader(path, lines, pairs, faults)
            elif pairs:
                raise DataError(f"{path}: plain text, and pairs are needed: JSONL or CSV/TSV with source and target")
            elif whole:
                yield from _whole_text(path, lines)
            else:
                yield from _paragraphs(lines)
            after = os.stat(path)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DataError(f"{path}: the file changed while it was read; run again once nothing writes to it")
    except DataError as error:
        faults.bad(str(error))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        faults.bad(f"{path}: the gzip file is truncated or damaged ({error}); copy it again")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _open(path: str) -> BinaryIO:
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")


def _lines(path: str, file: BinaryIO, faults: Faults) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines, each with its line feed."""
    number = 0
    while line := file.readline(MAX_BYTES + 1):
        number += 1
        if len(line) > MAX_BYTES:
            raise DataError(f"{path}:{number}: a line of more than {MAX_BYTES} bytes; break it up")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if b"\x00" in line:
            faults.bad(f"{path}:{number}: a NUL byte: this is binary data or UTF-16, not UTF-8 text; convert it")
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            faults.bad(
                f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x}, the line's byte {error.start + 1}); "
                "convert the file"
            )
            continue
        yield number, text.removesuffix("\r\n") + "\n" if text.endswith("\r\n") else text
    if not number:
        raise DataError(f"{path}: the file is empty; remove it or give it text")


def _whole_text(path: str, lines: Iterator[tuple[int, str]]) -> Iterator[Record]:
    parts, size = [], 0
    for number, line in lines:
        size += len(line)
        if size > MAX_BYTES:
            raise DataError(f"{path}:{number}: a text of more than {MAX_BYTES} characters; split the file")
        parts.append(line)
    text = "".join(parts)
    if text.strip():
        yield Record(text)


def _paragraphs(lines: Iterator[tuple[int, str]]) -> Iterator[Record]:
    parts: list[str] = []
    for _, line in lines:
        if line.strip():
            parts.append(line)
        elif parts:
            yield Record("".join(parts).removesuffix("\n"))
            parts = []
    if parts:
        yield Record("".join(parts).removesuffix("\n"))


def _json_records(path: str, lines: Iterator[tuple[int, str]], pairs: bool, faults: Faults) -> Iterator[Record]:
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.bad(f"{where}: not JSON ({error}); each line must hold one whole object")
            continue
        if not isinstance(value, dict):
            faults.bad(f"{where}: a JSON {type(value).__name__}, not an object; each line must hold one whole object")
            continue
        if record := _record(where, value, pairs, faults):
            yield record


def _csv_records(path: str, lines: Iterator[tuple[int, str]], pairs: bool, faults: Faults) -> Iterator[Record]:
    csv.field_size_limit(MAX_BYTES)
    tabs = suffix(path) == ".tsv"
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    rows = csv.reader((line for _, line in lines), delimiter="\t" if tabs else ",", quoting=quoting, strict=True)
    header = None
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            faults.bad(f"{path}:{first}: {error}; quote the field, or double the quotes inside it")
            continue
        if row is None:
            return
        if not row:
            continue
        if header is None:
            header = row
            missing = set(_names(header, pairs)) - set(header)
            if missing:
                raise DataError(f"{path}:1: the header {str(header)[:200]} has no {_named(missing)}; {_NEED[pairs]}")
        elif len(row) != len(header):
            faults.bad(f"{path}:{first}: {len(row)} fields, and the header has {len(header)}; mend the row")
        else:
            record = _record(f"{path}:{first}", dict(zip(header, row, strict=True)), pairs, faults)
            if record:
                yield record


def _names(known: Collection[str], pairs: bool) -> tuple[str, ...]:
    """The fields that make a record of those that are there."""
    if pairs or ("text" not in known and ("source" in known or "target" in known)):
        return "source", "target"
    return ("text",)


def _named(fields: Collection[str]) -> str:
    return " and no ".join(repr(field) for field in sorted(fields))


def _record(where: str, fields: dict, pairs: bool, faults: Faults) -> Record | None:
    """The record that named fields hold, or None if it is bad or its text is empty."""
    names = _names(fields, pairs)
    for name in names:
        value = fields.get(name)
        if not isinstance(value, str):
            wrong = f"{name!r} is no string but {str(value)[:40]!r}" if name in fields else f"no {name!r}"
            return faults.bad(f"{where}: {wrong}; {_NEED[pairs]}")
        if "\x00" in value or not _encodes(value):
            return faults.bad(f"{where}: {name!r} holds a NUL or half a surrogate pair; remove it")
        if len(names) == 2 and not value.strip():
            return faults.bad(f"{where}: {name!r} is empty; remove the record")
    return Record(*(fields[name] for name in names)) if fields[names[0]].strip() else None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_READERS = {".jsonl": _json_records, ".json": _json_records, ".csv": _csv_records, ".tsv": _csv_records}
