"""Finds files by path or glob, and reads their lines; a line that cannot be decoded is returned with its error."""

import collections
import functools
import glob
import gzip
import io
import logging
import os
import pathlib
import shlex
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal, NamedTuple, TypeVar

from lmjax.errors import DataError

MAX_BYTES = 256 * 2**20  # of a line, or of a document of text; more is refused, to limit the use of memory
_HEAD_BYTES = 2**16  # of the beginning of a file, which decides its encoding and its line ends
_PIECE_BYTES = 2**18
_LISTED_FILES = 1000
# Files that begin with these bytes are not UTF-8 text, whatever their name.
_OTHER = {
    b"\x1f\x8b": "this is gzip data; give it a name that ends in .gz",
    b"\xff\xfe": "this is UTF-16 text; convert it to UTF-8",
    b"\xfe\xff": "this is UTF-16 text; convert it to UTF-8",
}
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)
_BOM = b"\xef\xbb\xbf"

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        number: counted from 1.
        text: with its line feed; of a line with a fault, enough to find the ends of records.
        size: number of bytes.
        fault: an error message with file and line; empty if there is no error.
    """

    number: int
    text: str
    size: int
    fault: str = ""


class Faults:
    """Handles bad records: either the first one is an error, or all are left out, counted and reported.

    Attributes:
        first: the message of the first bad record, or else of the first empty file; "" if there is none.
    """

    def __init__(self, action: Literal["error", "skip"]):
        self._action = action
        self._count = 0
        self._empty: list[str] = []
        self.first = ""

    def bad(self, message: str) -> None:
        """Counts one bad record.

        Raises:
            DataError: the action is "error".
        """
        if self._action == "error":
            raise DataError(message)
        self.first = self.first if self._count else message
        self._count += 1

    def empty(self, path: str) -> None:
        """Counts an empty file, which is an error only if no file has a document."""
        self._empty.append(path)
        self.first = self.first or f"{path}: the file is empty; remove it or give it text"

    def report(self) -> None:
        """Logs the number of records and of empty files left out, and the first of each."""
        if self._count:
            _warn(f"{self._count} bad records left out; the first: {self.first}")
        if self._empty:
            _warn(f"{len(self._empty)} empty files left out; the first: {self._empty[0]}")


@functools.lru_cache(maxsize=1024)  # warns only once, although a data set is read several times
def _warn(message: str) -> None:
    _log.warning("%s", message)


def find_files(spec: str) -> list[str]:
    """Returns the files that a path or a glob (with `**` for any folders) names, sorted.

    Raises:
        DataError: there is no such file, or the path is a directory.
    """
    path = os.path.expanduser(spec)
    if os.path.isdir(path):
        pattern = os.path.join(glob.escape(path.rstrip("/") or "/"), "**", f"*{_commonest_suffix(path)}")
        raise DataError(f"--data: {spec!r} is a directory; name its files, as in {shlex.quote(pattern)}")
    if os.path.exists(path):
        if not os.path.isfile(path) and not os.path.abspath(path).startswith(("/dev/", "/proc/")):
            raise DataError(f"--data: {spec!r} is a pipe or a device, which may wait for ever; write it to a file")
        return [path]
    paths = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
    if not paths:
        raise DataError(f"--data: no file matches {spec!r}; give a file's path or a quoted glob, as 'corpus/**/*.txt'")
    return paths


def _commonest_suffix(folder: str) -> str:
    """Returns the most common suffix, including .gz, of the first files in a directory."""
    counts: collections.Counter[str] = collections.Counter()
    for _, _, names in os.walk(folder):
        shown = [name for name in names if not name.startswith(".")]
        counts.update("".join(pathlib.PurePath(n).suffixes[-2 if n.endswith(".gz") else -1 :]) for n in shown)
        if counts.total() > _LISTED_FILES:
            break
    return max(counts, key=lambda name: (counts[name], name)) if counts else ".txt"


def suffix(path: str) -> str:
    """Returns the suffix that decides the format, in lower case and without .gz."""
    name = path.lower().removesuffix(".gz")
    return pathlib.PurePath(name).suffix


def read_file(path: str, read: Callable[[BinaryIO], Iterator[T]], faults: Faults) -> Iterator[T]:
    """Yields what `read` makes from the bytes of a file.

    `read` gets the bytes decompressed, without a byte order mark, and with line feeds instead of carriage returns if
    the file has no line feeds.

    Args:
        path: the file.
        read: reads from the bytes and yields its results.
        faults: handles a DataError that `read` raises, and damage of the whole file.

    Raises:
        DataError: the file cannot be opened, or `faults` raises it.
    """
    try:
        with _open(path) as file:
            before = os.stat(path)
            head, damage = _head(file)
            for start, message in _OTHER.items():
                if head.startswith(start):
                    raise DataError(f"{path}: {message}")
            if head in (b"", _BOM) and damage is None:
                faults.empty(path)
            yield from read(io.BufferedReader(_Bytes(head, damage, file), _PIECE_BYTES))
            after = os.stat(path)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DataError(f"{path}: the file changed while it was read; run again once nothing writes to it")
    except DataError as error:
        faults.bad(str(error))
    except _DAMAGE as error:
        faults.bad(f"{path}: the gzip file is truncated or damaged ({error}); copy it again")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _open(path: str) -> BinaryIO:
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")


def _head(file: BinaryIO) -> tuple[bytes, Exception | None]:
    """Returns the first bytes of a file, and the error that ended them if the file is damaged after them."""
    head = b""
    try:
        while len(head) < _HEAD_BYTES and (more := file.read1(_HEAD_BYTES - len(head))):
            head += more
    except _DAMAGE as error:
        return head, error
    return head, None


class _Bytes(io.RawIOBase):
    """The bytes of a file whose beginning was already read; carriage returns become line feeds if it has none."""

    def __init__(self, head: bytes, damage: Exception | None, file: BinaryIO):
        # The last byte may be the carriage return of a CRLF that continues after the head.
        whole = head[:-1] if len(head) == _HEAD_BYTES else head
        self._old_ends = b"\n" not in head and b"\r" in whole
        self._head = head.removeprefix(_BOM)
        self._damage, self._file = damage, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        if not data and self._damage is not None:
            raise self._damage
        # The bytes before the damage are returned first; the next call raises the error.
        data = data or self._file.read1(len(buffer))
        buffer[: len(data)] = data.replace(b"\r", b"\n") if self._old_ends else data
        return len(data)


def read_lines(path: str, file: BinaryIO, max_bytes: int = MAX_BYTES) -> Iterator[Line]:
    """Yields all lines of a file; those that cannot be read have a fault. CRLF is read as LF.

    Args:
        path: of the file, for messages.
        file: its bytes, as `read_file` passes them.
        max_bytes: the largest size of a line; a longer one has a fault, and is not held in memory.
    """
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes:
            yield _too_long(f"{path}:{number}", number, line, file, max_bytes)
            continue
        fault = ""
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            text, said = line.decode(errors="surrogateescape"), f"byte 0x{line[error.start]:02x}"
            fault = f"{path}:{number}: not UTF-8 ({said}, the line's byte {error.start + 1}); convert the file"
        if b"\0" in line:
            fault = f"{path}:{number}: a NUL byte: this is binary data or UTF-16, not UTF-8 text; convert it"
        if text.endswith("\r\n"):
            text = text[:-2] + "\n"
        yield Line(number, text, len(line), fault)


def _too_long(where: str, number: int, line: bytes, file: BinaryIO, max_bytes: int) -> Line:
    """Returns a short line with a fault in place of a line that is too long, and skips the rest of that line."""
    size, quotes = len(line), line.count(b'"')
    while not line.endswith(b"\n") and (line := file.readline(_PIECE_BYTES)):
        size, quotes = size + len(line), quotes + line.count(b'"')
    # In CSV an odd number of quotes opens or closes a quoted field, so the short line has one quote then.
    text = '"\n' if quotes % 2 else "x\n"
    return Line(number, text, 2, f"{where}: a line of more than {max_bytes} bytes ({size}); break it up")
