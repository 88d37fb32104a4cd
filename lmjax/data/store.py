"""Stores: tokenised documents on disk, with random access. A store that is not complete is never used.

A store is a folder `store-FINGERPRINT` with

| file | dtype | content |
|---|---|---|
| tokens.bin | uint16, or uint32 for larger vocabularies | the tokens of all documents, concatenated |
| documents.bin | int64 `[documents + 1]` | index in tokens.bin of the first token of each document |
| document_segments.bin | int64 `[documents + 1]` | index in segments.bin of the first segment of each document |
| segments.bin | int64 `[segments + 1]` | index in tokens.bin of the first token of each segment |
| texts.bin | int64 `[documents * texts + 1]` | of records: index in segments.bin of each tokenised column |
| value_N.bin ... | | of records: the N-th column that is not tokenised, as in `values.py` |
| meta.json | | counts, dtype, the parts of the fingerprint, and the size of each file |

It is built in a temporary folder of its own, synced to disk, then renamed. If two processes build the same store at the
same time, both build it and one of the two equal results remains. If a builder is killed, the next one removes its
temporary folder.
"""

import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lmjax.data.columns import Column, Value
from lmjax.data.documents import Document
from lmjax.data.encoding import Encoder
from lmjax.data.values import RecordWriter, Values
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import DataError, SaveError
from lmjax.paths import sync_folder

_FORMAT = 2  # raise it when the format, or the way texts are split and encoded, changes
_BATCH_CHARS = 4_000_000
_TEMPORARY = ".tmp-store-"
_INDEX_FILES = ("documents.bin", "document_segments.bin", "segments.bin")


class Store:
    """The tokens of all documents, memory-mapped at the first access. Picklable: only its path is pickled.

    Attributes:
        path: the folder.
        num_documents: number of documents.
        num_tokens: number of tokens of all documents.
        num_bytes: number of UTF-8 bytes of all documents.
        pairs: whether every document is a source and a target.
        columns: the columns of the documents if they are records; otherwise empty.
        fingerprint: hex digest of everything from which the store was built.
    """

    def __init__(self, path: str):
        self.path = path
        meta = _read_meta(pathlib.Path(path))
        if meta is None:
            raise DataError(f"{path}: not a whole token store; remove it, and it is built again")
        self.num_documents: int = meta["num_documents"]
        self.num_tokens: int = meta["num_tokens"]
        self.num_bytes: int = meta["num_bytes"]
        self.pairs: bool = meta["pairs"]
        self.columns = tuple(Column(*column) for column in meta.get("columns", ()))
        self.fingerprint: str = meta["fingerprint"]
        self._dtype = np.dtype(meta["dtype"])

    @functools.cached_property
    def _tokens(self) -> np.ndarray:
        return _mapped(os.path.join(self.path, "tokens.bin"), self._dtype)

    @functools.cached_property
    def _index(self) -> tuple[np.ndarray, ...]:
        return tuple(_mapped(os.path.join(self.path, name), np.int64) for name in _INDEX_FILES)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Returns int64 `[documents]`, the number of tokens of each document."""
        return np.diff(self._index[0])

    def document(self, i: int) -> np.ndarray:
        """Returns the tokens of document `i`, int32 `[tokens]`."""
        offsets = self._index[0]
        return self._tokens[offsets[i] : offsets[i + 1]].astype(np.int32)

    def tokens(self, i: int, start: int, length: int) -> np.ndarray:
        """Returns the tokens `start` to `start + length - 1` of document `i`, int32 `[length]`."""
        first = self._index[0][i] + start
        assert first + length <= self._index[0][i + 1], "past the end of the document"
        return self._tokens[first : first + length].astype(np.int32)

    def spelled_bytes(self, token_bytes: np.ndarray) -> int:
        """Returns the number of UTF-8 bytes that the tokens of all documents represent.

        It can differ from `num_bytes`, for example if the tokenizer normalises the text.

        Args:
            token_bytes: `[vocab_size]`, the number of bytes that each id represents.
        """
        parts = range(0, self.num_tokens, _BATCH_CHARS)
        return sum(int(token_bytes[self._tokens[start : start + _BATCH_CHARS]].sum()) for start in parts)

    def segments(self, i: int) -> np.ndarray:
        """Returns int64 `[segments + 1]`: in document `i`, the index of each segment's first token; then its length."""
        documents, document_segments, segments = self._index
        return segments[document_segments[i] : document_segments[i + 1] + 1] - documents[i]

    def texts(self, i: int, name: str) -> list[np.ndarray]:
        """Returns the tokens of each text in a tokenised column of document `i`, int32; type `text` has one text."""
        names = [column.name for column in self.columns if column.tokenised]
        first, end = self._texts[i * len(names) + names.index(name) :][:2]
        cuts = self._index[2][first : end + 1]
        return [self._tokens[a:b].astype(np.int32) for a, b in itertools.pairwise(cuts)]

    def value(self, i: int, name: str) -> Value:
        """Returns the value of a column that is not tokenised in document `i`; a list as a tuple."""
        return self._values[name][i]

    @functools.cached_property
    def _texts(self) -> np.ndarray:
        return _mapped(os.path.join(self.path, "texts.bin"), np.int64)

    @functools.cached_property
    def _values(self) -> dict[str, Values]:
        kept = [column for column in self.columns if not column.tokenised]
        return {c.name: Values(self.path, f"value_{number}", c.type) for number, c in enumerate(kept)}

    def __reduce__(self):
        return Store, (self.path,)


def build_store(
    documents: Callable[[], Iterator[Document]],
    tokenizer: Vocabulary,
    *,
    fingerprint_parts: dict,
    cache_dir: str,
    columns: Sequence[Column] = (),
    encoder: Encoder | None = None,
) -> Store:
    """Returns the store of the documents: the one in `cache_dir` if there is a complete one, otherwise a new one.

    Args:
        documents: gives the documents as a stream; called only if a store must be built.
        tokenizer: of the tokens.
        fingerprint_parts: everything that determines the documents (fingerprint of the corpus, the split ...), as JSON
            values.
        cache_dir: the folder of stores.
        columns: of the documents, if they are records.
        encoder: makes the tokens; None: it encodes each text as a whole.

    Raises:
        DataError: the documents have no tokens.
        SaveError: the store cannot be written.
    """
    encoder = encoder or Encoder(tokenizer)
    columns = columns if encoder.columns is None else encoder.columns
    parts = {"format": _FORMAT, "tokenizer": tokenizer.fingerprint, **fingerprint_parts, **encoder.parts}
    parts |= {"columns": list(columns)} if columns else {}
    encoded = json.dumps(parts, sort_keys=True).encode()
    fingerprint = hashlib.blake2b(encoded, digest_size=16).hexdigest()
    root = pathlib.Path(cache_dir)
    final = root / f"store-{fingerprint}"
    if _read_meta(final) is None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            _remove_stale(root)
            with _temporary_folder(root) as folder:
                meta = _write(folder, documents(), encoder, columns)
                meta |= {"fingerprint": fingerprint, "parts": parts}
                _write_meta(folder, meta)
                _publish(folder, final)
        except OSError as error:
            raise SaveError(
                f"data.cache_dir: cannot write a token store in {cache_dir!r} ({error.strerror})"
            ) from error
    return Store(str(final))


def _mapped(path: str, dtype: Any) -> np.ndarray:
    """Returns a file as an array that is read as it is used; raises DataError if it cannot be opened."""
    try:
        return np.memmap(path, dtype, "r")
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror}; remove its folder, and it is built again") from e


def _read_meta(folder: pathlib.Path) -> dict | None:
    """Returns the metadata of a complete store; None if there is none, or a file is missing or has another size."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        whole = all((folder / name).stat().st_size == size for name, size in meta["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return meta if whole and meta["format"] == _FORMAT else None


def _write(folder: pathlib.Path, documents: Iterator[Document], encoder: Encoder, columns: Sequence[Column]) -> dict:
    """Returns the metadata, after writing the tokens and offsets batch by batch.

    Raises:
        DataError: there are no tokens.
    """
    dtype = np.dtype(np.uint16 if encoder.tokenizer.vocab_size <= 2**16 else np.uint32)
    num_documents = num_segments = num_tokens = num_bytes = 0
    pairs = False
    names = ("tokens.bin", *_INDEX_FILES)
    with contextlib.ExitStack() as stack:
        tokens, *index = (stack.enter_context(open(folder / name, "wb")) for name in names)
        records = RecordWriter(columns, lambda name: stack.enter_context(open(folder / name, "wb")))
        for file in index:
            np.zeros(1, np.int64).tofile(file)
        for batch in _batches(documents):
            num_bytes += sum(len(segment.encode()) for document in batch for segment in document.segments)
            encoded = list(encoder(batch))
            if not encoded:
                continue
            pairs = encoded[0][0].pair
            for _, ids, _ in encoded:
                tokens.write(ids.astype(dtype))
            records.write([document for document, _, _ in encoded])
            sizes, counts = (np.array([len(of[i]) for of in encoded], np.int64) for i in (1, 2))
            document_ends, segment_counts = num_tokens + np.cumsum(sizes), num_segments + np.cumsum(counts)
            segment_ends = np.repeat(document_ends - sizes, counts) + np.concatenate([ends for _, _, ends in encoded])
            for file, offsets in zip(index, (document_ends, segment_counts, segment_ends), strict=True):
                offsets.tofile(file)
            num_documents += len(encoded)
            num_segments, num_tokens = int(segment_counts[-1]), int(document_ends[-1])
        if not num_tokens:
            raise DataError("the documents hold no tokens; check what --data and --eval_data name")
        for file in (tokens, *index, *records.files.values()):
            file.flush()
            os.fsync(file.fileno())
    return {
        "format": _FORMAT,
        "num_documents": num_documents,
        "num_segments": num_segments,
        "num_tokens": num_tokens,
        "num_bytes": num_bytes,
        "pairs": pairs,
        "dtype": dtype.name,
        "sizes": {name: (folder / name).stat().st_size for name in (*names, *records.files)},
    } | ({"columns": list(columns)} if columns else {})


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Yields lists of consecutive documents, of about `_BATCH_CHARS` characters each."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += sum(map(len, document.segments))
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_meta(folder: pathlib.Path, meta: dict) -> None:
    with open(folder / "meta.json", "w") as file:
        json.dump(meta, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def _publish(folder: pathlib.Path, final: pathlib.Path) -> None:
    """Renames the folder to its final name, unless another builder was first; replaces an incomplete store there."""
    with open(final.parent / ".publish.lock", "ab") as lock:
        _lock(lock, wait=True)
        if _read_meta(final) is None:
            shutil.rmtree(final, ignore_errors=True)
            folder.rename(final)
            sync_folder(final.parent)


@contextlib.contextmanager
def _temporary_folder(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder for one builder, which holds the lock of the folder until it ends or is killed."""
    # The lock is taken before the folder is made, so a folder whose lock is free has no builder.
    with tempfile.NamedTemporaryFile(prefix=_TEMPORARY, suffix=".lock", dir=root) as file:
        _lock(file, wait=True)
        folder = pathlib.Path(file.name).with_suffix("")
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(root: pathlib.Path) -> None:
    """Removes the temporary folders of builders that were killed."""
    for folder in root.glob(_TEMPORARY + "*"):
        lock = folder.with_suffix(".lock")
        with contextlib.suppress(OSError):
            if folder.is_dir():
                with open(lock, "rb") as file:
                    if _lock(file, wait=False):
                        shutil.rmtree(folder, ignore_errors=True)
                        lock.unlink(missing_ok=True)


def _lock(file, wait: bool) -> bool:
    """Returns whether this process got the lock; False on a network file system without locks.

    There no temporary folder counts as stale, so none is removed.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
