"""The tensors of a checkpoint folder, in one safetensors file or several with an index; read and written one by one."""

from __future__ import annotations

import json
import pathlib
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lmjax.errors import DataError
from lmjax.paths import read_regular

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000

# The beginning of the small file that a clone without Git LFS has instead of a large one.
_POINTER = b"version https://git-lfs"
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class Header(NamedTuple):
    """The metadata of a tensor, known before its values are read.

    Attributes:
        file: the file that contains it.
        name: its name in the file.
        dtype: None: not a floating-point type.
        shape: of the tensor.
    """

    file: pathlib.Path
    name: str
    dtype: np.dtype | None
    shape: tuple[int, ...]


def read_json(path: pathlib.Path, kind: type = dict) -> Any:
    """Returns the object in a JSON file, with kind=list the array; raises DataError if the file cannot be read."""
    try:
        values = json.loads(read_regular(path))
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: not JSON ({str(e).splitlines()[0]}); copy it again") from e
    if not isinstance(values, kind):
        wanted = "an object" if kind is dict else "an array"
        raise DataError(f"{path}: holds a {type(values).__name__}, not {wanted}; copy it again")
    return values


class Shards:
    """The tensors of a folder by name. A file is only open while a tensor is read, so no tensor stays in memory.

    Attributes:
        headers: the metadata of every tensor by name.
    """

    def __init__(self, folder: pathlib.Path):
        """Reads the headers.

        Raises:
            DataError: there is no safetensors file, or one is truncated, missing, or lacks a tensor of the index.
        """
        self.folder = folder
        self.headers: dict[str, Header] = {}
        for file, promised in _files(folder).items():
            found = dict(_headers(file))
            if missing := promised - found.keys():
                raise DataError(f"{file}: lacks {sorted(missing)[0]!r}, which {INDEX} lists; copy both again")
            self.headers |= {_modern(name): header for name, header in found.items()}

    @property
    def largest_file(self) -> int:
        """Returns the bytes of the largest file."""
        return max(file.stat().st_size for file in {header.file for header in self.headers.values()})

    def rename(self, names: Mapping[str, str]) -> None:
        """Renames the tensors from the keys of `names` to its values; headers keep the names in the files."""
        self.headers = {names[name]: header for name, header in self.headers.items()}

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor.

        Raises:
            DataError: it holds a number that is not finite, or the file has changed since its headers were read.
        """
        header = self.headers[name]
        try:
            with _opened(header.file) as file:
                tensor = file.get_tensor(header.name)
        except SafetensorError as e:
            raise DataError(f"{header.file}: has changed while it was read, and lacks {header.name!r} now") from e
        if tensor.shape != header.shape:
            raise DataError(f"{header.file}: has changed while it was read: the shape of {name!r} is another one now")
        # If any number is not finite, the minimum or the maximum is not; `isfinite` of all would need more memory.
        if tensor.size and not (np.isfinite(tensor.min()) and np.isfinite(tensor.max())):
            count = tensor.size - np.count_nonzero(np.isfinite(tensor))
            raise DataError(f"{header.file}: tensor {name!r} has {count} numbers that are not finite")
        return tensor


def _modern(name: str) -> str:
    """Returns the current name of a tensor: norms of the first BERT checkpoints have a gamma and a beta."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def _files(folder: pathlib.Path) -> dict[pathlib.Path, set[str]]:
    """Returns the safetensors files of a folder, each with the names of the tensors that the index lists for it."""
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: set()}
    index = folder / INDEX
    if not index.is_file():
        pickles = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt*")]
        hint = f"; {pickles[0]} may hold code and is not read: save it as safetensors" if pickles else ""
        raise DataError(f"{folder}: there is neither {SINGLE} nor {INDEX}{hint}")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(v, str) for v in places.values()):
        raise DataError(f"{index}: has no weight_map from tensors to files; copy it again")
    files: dict[pathlib.Path, set[str]] = {}
    for name, file in places.items():
        if pathlib.PurePath(file).name != file:
            raise DataError(f"{index}: {name!r} is listed in {file!r}, which is not a file of this folder")
        files.setdefault(folder / file, set()).add(name)
    return files


def _opened(file: pathlib.Path) -> safe_open:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise OSError("it is a folder, a pipe or a device")
        return safe_open(file, "numpy")
    except (SafetensorError, OSError, ValueError) as e:
        if _is_pointer(file):
            raise DataError(
                f"{file}: is Git's note of where the file is, not the file; run `git lfs pull` there"
            ) from e
        raise DataError(f"{file}: not a whole safetensors file ({str(e).splitlines()[0]}); copy it again") from e


def _is_pointer(file: pathlib.Path) -> bool:
    """Returns whether a file is the small pointer file that a clone without Git LFS has instead of a large one."""
    try:
        return file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(_POINTER)
    except (OSError, ValueError):
        return False


def _headers(file: pathlib.Path) -> Iterator[tuple[str, Header]]:
    with _opened(file) as opened:
        for name in opened.offset_keys():
            part = opened.get_slice(name)
            yield name, Header(file, name, _DTYPES.get(part.get_dtype()), tuple(part.get_shape()))


def write_shards(folder: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> None:
    """Writes tensors into one file, or into several with an index if they have more than `shard_bytes` bytes.

    The iterable is consumed lazily, so that at most the tensors of one file are in memory.
    """
    parts: list[tuple[pathlib.Path, list[str]]] = []
    held: dict[str, np.ndarray] = {}
    total = size = 0

    def flush() -> None:
        nonlocal size
        path = folder / f"part-{len(parts):05}.safetensors"
        save_file(held, path, metadata={"format": "pt"})
        parts.append((path, list(held)))
        held.clear()
        size = 0

    for name, tensor in tensors:
        if held and size + tensor.nbytes > shard_bytes:
            flush()
        held[name] = np.ascontiguousarray(tensor)
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    if len(parts) == 1:
        parts[0][0].rename(folder / SINGLE)
        return
    places = {}
    for number, (path, names) in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        path.rename(folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
