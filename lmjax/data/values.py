"""Files of a store for the columns that are not tokenised: written document by document, with random access.

| file | dtype | content |
|---|---|---|
| NAME.bin | int64, float64 or UTF-8 bytes | the values of all documents, concatenated |
| NAME_items.bin | int64 `[items + 1]` | of strings: index in NAME.bin of the first byte of each string |
| NAME_lists.bin | int64 `[documents + 1]` | of lists: index of the first item of each document |
"""

import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np

from lmjax.data.columns import Column, Value
from lmjax.data.documents import Document

_DTYPES = {"integer": np.dtype(np.int64), "number": np.dtype(np.float64), "string": np.dtype(np.uint8)}


def _shape(kind: str) -> tuple[np.dtype, bool, bool]:
    """Returns the dtype of a column's values, whether they are strings, and whether each document has a list."""
    single = kind.removesuffix("s")
    return _DTYPES[single], single == "string", kind != single


class ValueWriter:
    """Writes the values of one column.

    Attributes:
        files: the files to which it writes, by name.
    """

    def __init__(self, name: str, kind: str, opened: Callable[[str], BinaryIO]):
        self._dtype, self._strings, self._lists = _shape(kind)
        parts = {"": True, "_items": self._strings, "_lists": self._lists}
        self.files = {f"{name}{part}.bin": opened(f"{name}{part}.bin") for part, there in parts.items() if there}
        self._data, *index = self.files.values()
        for file in index:
            np.zeros(1, np.int64).tofile(file)
        self._index = dict(zip([p for p, there in parts.items() if there and p], index, strict=True))
        self._ends = {"_items": 0, "_lists": 0}

    def write(self, values: Sequence[Value]) -> None:
        """Appends the values of some documents."""
        if self._lists:
            self._extend("_lists", values)
            values = [item for items in values for item in items]
        if self._strings:
            values = [value.encode() for value in values]
            self._extend("_items", values)
            self._data.write(b"".join(values))
        else:
            np.array(values, self._dtype).tofile(self._data)

    def _extend(self, part: str, values: Sequence[Sequence]) -> None:
        ends = self._ends[part] + np.cumsum([len(value) for value in values], dtype=np.int64)
        ends.tofile(self._index[part])
        self._ends[part] = int(ends[-1]) if len(ends) else self._ends[part]


class Values:
    """The values of one column by the number of the document, memory-mapped at the first access."""

    def __init__(self, folder: str, name: str, kind: str):
        self._path = pathlib.Path(folder, name)
        self._dtype, self._strings, self._lists = _shape(kind)
        self._parts: dict[str, np.ndarray] = {}

    def __getitem__(self, i: int) -> Value:
        start, end = self._part("_lists", np.int64)[i : i + 2] if self._lists else (i, i + 1)
        data = self._part("", self._dtype)
        if self._strings:
            cuts = self._part("_items", np.int64)[start : end + 1]
            found = [data[a:b].tobytes().decode() for a, b in itertools.pairwise(cuts)]
        else:
            found = data[start:end].tolist()
        return tuple(found) if self._lists else found[0]

    def _part(self, part: str, dtype: type) -> np.ndarray:
        if part not in self._parts:
            path = self._path.with_name(f"{self._path.name}{part}.bin")
            # An empty file cannot be mapped.
            self._parts[part] = np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
        return self._parts[part]


class RecordWriter:
    """Writes the columns of records, except the tokens; writes nothing if there are no columns.

    Attributes:
        files: the files to which it writes, by name.
    """

    def __init__(self, columns: Sequence[Column], opened: Callable[[str], BinaryIO]):
        kept = [column for column in columns if not column.tokenised]
        self._values = [ValueWriter(f"value_{number}", c.type, opened) for number, c in enumerate(kept)]
        self._segments = 0
        self.files = {"texts.bin": opened("texts.bin")} if columns else {}
        for file in self.files.values():
            np.zeros(1, np.int64).tofile(file)
        for writer in self._values:
            self.files |= writer.files

    def write(self, documents: Sequence[Document]) -> None:
        """Appends some documents."""
        if not self.files:
            return
        counts = [count for document in documents for count in document.counts]
        ends = self._segments + np.cumsum(counts, dtype=np.int64)
        ends.tofile(self.files["texts.bin"])
        self._segments = int(ends[-1])
        for number, writer in enumerate(self._values):
            writer.write([document.values[number] for document in documents])
