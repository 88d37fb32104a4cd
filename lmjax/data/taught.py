"""A file with a teacher's likeliest tokens at each prediction of each row, so that training needs no teacher in memory.

It is a safetensors file: `keys` identify the rows by their contents, `ids` and `log_probs` `[rows, predictions, k]` are
the likeliest tokens and the logarithms of their probabilities, and the metadata say by whom and at which temperature.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmjax.errors import DataError

SUFFIX = ".safetensors"
# What a row of features gets from the file.
IDS, LOG_PROBS = "teacher_ids", "teacher_log_probs"
_KINDS = {"keys": "U64", "ids": "I32", "log_probs": "F16"}
_DTYPES = {"U64": np.dtype("<u8"), "I32": np.dtype("<i4"), "F16": np.dtype("<f2")}
_MOST = 100_000_000  # bytes of a header, as in the safetensors library


def row_key(features: Mapping[str, np.ndarray]) -> int:
    """Returns a number that identifies a row by its tokens, targets and segments."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(n for n in features if n.endswith(("tokens", "targets", "segment_ids"))):
        digest.update(name.encode() + np.ascontiguousarray(features[name]).tobytes())
    return int.from_bytes(digest.digest(), "little")


class Writer:
    """Writes such a file row by row; a context manager that gives the file its name at the end."""

    def __init__(self, path: pathlib.Path, rows: int, predictions: int, k: int, metadata: Mapping[str, Any]):
        """Opens a file for `rows` rows.

        Args:
            path: the new file.
            rows: number of rows.
            predictions: of each row.
            k: tokens of each prediction.
            metadata: JSON values by name.
        """
        shapes = {"keys": (rows,), "ids": (rows, predictions, k), "log_probs": (rows, predictions, k)}
        header: dict[str, Any] = {"__metadata__": {name: json.dumps(value) for name, value in metadata.items()}}
        end = 0
        for name, shape in shapes.items():
            begin, end = end, end + int(np.prod(shape)) * _DTYPES[_KINDS[name]].itemsize
            header[name] = {"dtype": _KINDS[name], "shape": shape, "data_offsets": [begin, end]}
        content = json.dumps(header).encode()
        content += b" " * (-len(content) % 8)
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        with self._partial.open("wb") as file:
            file.write(len(content).to_bytes(8, "little") + content)
            file.truncate(8 + len(content) + end)
        self._arrays, self._row = _arrays(self._partial, header, 8 + len(content), "r+"), 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._arrays.clear()
        if kind is None:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink(missing_ok=True)

    def add(self, features: Mapping[str, np.ndarray], ids: np.ndarray, log_probs: np.ndarray) -> None:
        """Adds the next row."""
        row, self._row = self._row, self._row + 1
        values = {"keys": row_key(features), "ids": ids, "log_probs": log_probs}
        for name, array in self._arrays.items():
            array[row] = values[name]


def _arrays(path: pathlib.Path, header: Mapping[str, Any], start: int, mode: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by name, which are read from disk when they are used."""
    found = {}
    for name, kind in _KINDS.items():
        shape, (begin, _) = tuple(header[name]["shape"]), header[name]["data_offsets"]
        found[name] = np.memmap(path, _DTYPES[kind], mode, start + begin, shape)
    return found


class Taught:
    """Such a file, opened to read: a function from the features of a row to what the file has for it. Picklable."""

    def __init__(self, path: str):
        """Opens a file; raises DataError if it is none, or is damaged."""
        self.path = path
        place = pathlib.Path(path).expanduser()
        try:
            with place.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                content = file.read(min(size, _MOST))
            header = json.loads(content)
            self.metadata = {name: json.loads(text) for name, text in header["__metadata__"].items()}
            self._arrays = _arrays(place, header, 8 + size, "r")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            raise DataError(f"{path}: is no file of lmjax teach ({str(e)[:100]}); write it again") from e
        self._rows = {int(key): row for row, key in enumerate(self._arrays["keys"])}
        self.fingerprint = hashlib.blake2b(content + self._arrays["keys"].tobytes(), digest_size=16).hexdigest()

    def __call__(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns int32 `teacher_ids` and float32 `teacher_log_probs` `[predictions, k]` of a row.

        Raises:
            DataError: the file has no such row.
        """
        row = self._rows.get(row_key(features))
        if row is None:
            raise DataError(
                f"{self.path}: lacks a row of the training data, since data, length, objective or seed are others than "
                "those that it was written with; write it again with the flags of this run"
            )
        ids, log_probs = (np.array(self._arrays[name][row]) for name in ("ids", "log_probs"))
        return {IDS: ids.astype(np.int32), LOG_PROBS: log_probs.astype(np.float32)}

    def __reduce__(self) -> tuple[type[Taught], tuple[str]]:
        return Taught, (self.path,)
