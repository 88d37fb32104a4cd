"""The manifest of a checkpoint: a checksum of every file, written before the commit and verified before a restore.

Neither orbax nor the arrays' file format checks the bytes of an array, so that without a manifest a flipped bit would
be loaded without an error. The manifest is a text: a title, then a line `SIZE SUM[,SUM...] PATH` for every file, then
`end SUM`, the checksum of the lines before it. A large file has one XXH3 of 64 bits for every 64 MiB, computed in
parallel threads. Manifests of earlier versions have CRC-32 in its place.

XXH3 misses one error in 2^64. It protects against faults of hardware, not against an attacker, who could write another
manifest. On 147 MB, one thread took 3 ms for XXH3, 40 ms for zlib.crc32, 100 ms for sha256 and 180 ms for blake2b,
besides 10 ms to read the files.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import stat
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import xxhash

from lmjax.paths import is_litter, read_regular, sync_folder, write_durably

NAME = "manifest.txt"
# Orbax's own file beside the arrays. lmjax stores in its custom metadata that the checkpoint must have a manifest.
METADATA = "_CHECKPOINT_METADATA"
_TITLE = "lmjax manifest 2: XXH3-64 of every 64 MiB"
_CRC_TITLE = "lmjax manifest 1: CRC-32 of every 64 MiB"
_PIECE = 64 * 2**20
_READ = 2**20
_THREADS = 8


def write(folder: pathlib.Path, process: int = 0, processes: int = 1) -> None:
    """Writes one process's part of the manifest of a checkpoint, and syncs that part and the files in it to disk.

    Args:
        folder: the checkpoint's folder, complete except for the manifest.
        process: the number of this process; it reads the files that it wrote, which its host still has in memory.
        processes: the number of processes.
    """
    own = [path for path in _files(folder) if _owner(path, processes) == process]
    lines = _described(folder, own)
    write_durably(folder / f"{NAME}.{process}", "".join(f"{line}\n" for line in lines))


def merge(folder: pathlib.Path, processes: int = 1) -> None:
    """Makes the manifest from the parts of all processes, and syncs it and the folders' entries to disk."""
    parts = [folder / f"{NAME}.{process}" for process in range(processes)]
    text = "".join([f"{_TITLE}\n", *(part.read_text() for part in parts)])
    write_durably(folder / NAME, text + _end(text, _Xxh3))
    for part in parts:
        part.unlink()
    for below in (path for path in folder.rglob("*") if path.is_dir()):
        sync_folder(below)
    sync_folder(folder)


def problems(folder: pathlib.Path, process: int = 0, processes: int = 1) -> list[str]:
    """Returns what is wrong with the files of a checkpoint, each with its name; empty if they are as written.

    A checkpoint of an earlier version, which wrote no manifest, cannot be verified and so has no problems.

    Args:
        folder: the checkpoint's folder.
        process: the number of this process; each process verifies a part of the files.
        processes: the number of processes.
    """
    try:
        text = read_regular(folder / NAME).decode()
    except FileNotFoundError:
        return [] if processes > 1 and process else _without(folder)
    except (OSError, UnicodeDecodeError) as e:
        return [f"{NAME}: cannot be read ({_short(e)})"]
    body, _, end = text.removesuffix("\n").rpartition("\n")
    kind = {_TITLE: _Xxh3, _CRC_TITLE: _Crc32}.get(body.partition("\n")[0])
    if kind is None or f"{end}\n" != _end(f"{body}\n", kind):
        return [f"{NAME}: is damaged"]
    try:
        promised = dict(_parsed(line) for line in body.split("\n")[1:])
    except ValueError as e:
        return [f"{NAME}: is damaged ({e})"]
    mine = {path: told for number, (path, told) in enumerate(sorted(promised.items())) if number % processes == process}
    found = []
    pieces = []
    for path, (size, sums) in mine.items():
        try:
            info = (folder / path).stat()
        except OSError as e:
            found.append(f"{path}: is missing" if isinstance(e, FileNotFoundError) else f"{path}: {_short(e)}")
            continue
        if info.st_size != size or not stat.S_ISREG(info.st_mode):
            pipe = "" if stat.S_ISREG(info.st_mode) else ", and is a pipe or a device"
            found.append(f"{path}: has {info.st_size} bytes in place of {size}{pipe}")
            continue
        pieces += [(path, number * _PIECE, told) for number, told in enumerate(sums)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found += filter(None, pool.map(lambda piece: _compare(kind, folder, *piece), pieces))
    return found


def fingerprint(files: Sequence[pathlib.Path], folder: pathlib.Path) -> str:
    """Returns 16 hex digits that identify the names of files, relative to a folder, and their bytes."""
    sizes = {path: path.stat().st_size for path in files}
    pieces = [(path, start) for path, size in sizes.items() for start in range(0, max(size, 1), _PIECE)]
    told = _Xxh3()
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(lambda piece: _checksum(_Xxh3, *piece), pieces)
        for (path, _), found in zip(pieces, sums, strict=True):
            told.update(f"{path.relative_to(folder).as_posix()} {found}\n".encode())
    return str(told)


def has_manifest(folder: pathlib.Path) -> bool:
    """Returns whether a checkpoint has a manifest; those of earlier versions have none."""
    return (folder / NAME).exists()


def noted(folder: pathlib.Path) -> dict[str, object]:
    """Returns the metadata that lmjax saved in a checkpoint; empty if there is none or it cannot be read."""
    try:
        values = json.loads(read_regular(folder / METADATA))["custom_metadata"]["lmjax"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _without(folder: pathlib.Path) -> list[str]:
    """Returns what is wrong with a checkpoint that has no manifest."""
    try:
        json.loads(read_regular(folder / METADATA))
    except FileNotFoundError:
        return [f"{METADATA}: is missing"]
    except (OSError, ValueError, RecursionError) as e:
        return [f"{METADATA}: cannot be read ({_short(e)})"]
    return [f"{NAME}: is missing"] if noted(folder) else []


def _files(folder: pathlib.Path) -> list[str]:
    """Returns the paths of a checkpoint's files relative to its folder, sorted."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not is_litter(path.name))
    return sorted(path.relative_to(folder).as_posix() for path in paths if not path.name.startswith(NAME))


def _owner(path: str, processes: int) -> int:
    """Returns the process that wrote a file, from the file's name; the first process wrote files that name none."""
    named = re.search(r"process_(\d+)", path)
    return int(named[1]) % processes if named else 0


def _described(folder: pathlib.Path, paths: Iterable[str]) -> list[str]:
    """Returns the manifest's line of each file, after the file is synced to disk."""
    sizes = {path: (folder / path).stat().st_size for path in paths}
    pieces = [(path, start) for path, size in sizes.items() for start in range(0, max(size, 1), _PIECE)]
    sums: dict[str, list[str]] = {path: [] for path in sizes}
    with ThreadPoolExecutor(_THREADS) as pool:
        synced = [pool.submit(_sync_file, folder / path) for path in sizes]
        for (path, _), told in zip(
            pieces, pool.map(lambda p: _checksum(_Xxh3, folder / p[0], p[1]), pieces), strict=True
        ):
            sums[path].append(told)
        for done in synced:
            done.result()
    return [f"{size} {','.join(sums[path])} {path}" for path, size in sizes.items()]


class _Xxh3:
    """The checksum of bytes that are given in parts."""

    name = "XXH3"

    def __init__(self):
        self._state = xxhash.xxh3_64()

    def update(self, part: bytes) -> None:
        """Adds a part."""
        self._state.update(part)

    def __str__(self) -> str:
        return self._state.hexdigest()


class _Crc32:
    """The checksum of manifests of earlier versions."""

    name = "CRC-32"

    def __init__(self):
        self._state = 0

    def update(self, part: bytes) -> None:
        """Adds a part."""
        self._state = zlib.crc32(part, self._state)

    def __str__(self) -> str:
        return f"{self._state:08x}"


_Kind = type[_Xxh3] | type[_Crc32]


def _end(text: str, kind: _Kind) -> str:
    """Returns the last line of a manifest, with the checksum of the lines before it."""
    told = kind()
    told.update(text.encode())
    return f"end {told}\n"


def _parsed(line: str) -> tuple[str, tuple[int, list[str]]]:
    size, sums, path = line.split(" ", 2)
    if path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise ValueError(f"{path!r} is no file of a checkpoint")
    return path, (int(size), sums.split(","))


def _compare(kind: _Kind, folder: pathlib.Path, path: str, start: int, told: str) -> str | None:
    try:
        found = _checksum(kind, folder / path, start)
    except OSError as e:
        return f"{path}: {_short(e)}"
    return (
        None if found == told else f"{path}: its bytes are not those that were saved ({kind.name} {found}, not {told})"
    )


def _checksum(kind: _Kind, path: pathlib.Path, start: int) -> str:
    """Returns the checksum, in hex digits, of the 64 MiB of a file from `start` on."""
    told, left = kind(), _PIECE
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (part := file.read(min(left, _READ))):
            told.update(part)
            left -= len(part)
    return str(told)


def _sync_file(path: pathlib.Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _short(error: Exception) -> str:
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
