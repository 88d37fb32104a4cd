"""Tokenised documents on disk: random access, a fingerprint, and nothing half-built that a later run would trust.

A store is a folder `store-FINGERPRINT` with

| file | dtype | content |
|---|---|---|
| tokens.bin | uint16, or uint32 for larger vocabularies | the tokens of all documents, one after the other |
| documents.bin | int64 `[documents + 1]` | where each document's tokens begin |
| document_segments.bin | int64 `[documents + 1]` | where each document's segments begin in the next file |
| segments.bin | int64 `[segments + 1]` | where each segment's tokens begin |
| texts.bin | int64 `[documents * texts + 1]` | of records: where the segments of each tokenised column begin |
| value_N.bin ... | | of records: column N of those that are kept as they are; see `values.py` |
| meta.json | | counts, dtype, the parts of the fingerprint, and the size of each file |

It is built in a private temporary folder, synced, then renamed. Two builders at once each build, and one of the equal
stores stays. The folder of a builder that died is removed by the next one.
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

import numpy as np

from lmjax.data.columns import Column, Value
from lmjax.data.documents import Document
from lmjax.data.values import RecordWriter, Values
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import DataError, SaveError

_FORMAT = 2  # raise it when the format, or the way texts are split and encoded, changes
_BATCH_CHARS = 4_000_000
_TEMPORARY = ".tmp-store-"
_INDEX_FILES = ("documents.bin", "document_segments.bin", "segments.bin")


class Store:
    """The tokens of all documents, mapped from disk when first read. Picklable: it travels as its path.

    Attributes:
      path: the folder.
      num_documents: how many.
      num_tokens: of all documents.
      num_bytes: UTF-8 bytes of all documents.
      pairs: whether every document is a source and a target.
      columns: of every document, if they are records.
      fingerprint: hex digest of what the store was built from.
    """

    def __init__(self, path: str):
        self.path = path
        meta = _read_meta(pathlib.Path(path))
        if meta is None:
            raise DataError(f"{path}: not a whole token store; remove it, and it is built anew")
        self.num_documents: int = meta["num_documents"]
        self.num_tokens: int = meta["num_tokens"]
        self.num_bytes: int = meta["num_bytes"]
        self.pairs: bool = meta["pairs"]
        self.columns = tuple(Column(*column) for column in meta.get("columns", ()))
        self.fingerprint: str = meta["fingerprint"]
        self._dtype = np.dtype(meta["dtype"])

    @functools.cached_property
    def _tokens(self) -> np.ndarray:
        return np.memmap(os.path.join(self.path, "tokens.bin"), self._dtype, "r")

    @functools.cached_property
    def _index(self) -> tuple[np.ndarray, ...]:
        return tuple(np.memmap(os.path.join(self.path, name), np.int64, "r") for name in _INDEX_FILES)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """`[documents]` int64, tokens of each document."""
        return np.diff(self._index[0])

    def document(self, i: int) -> np.ndarray:
        """The int32 tokens of document `i`."""
        offsets = self._index[0]
        return self._tokens[offsets[i] : offsets[i + 1]].astype(np.int32)

    def tokens(self, i: int, start: int, length: int) -> np.ndarray:
        """The int32 tokens `start` to `start + length` of document `i`."""
        first = self._index[0][i] + start
        assert first + length <= self._index[0][i + 1], "past the end of the document"
        return self._tokens[first : first + length].astype(np.int32)

    def spelled_bytes(self, token_bytes: np.ndarray) -> int:
        """UTF-8 bytes that the tokens of all documents stand for, given those of each id; mostly `num_bytes`."""
        parts = range(0, self.num_tokens, _BATCH_CHARS)
        return sum(int(token_bytes[self._tokens[start : start + _BATCH_CHARS]].sum()) for start in parts)

    def segments(self, i: int) -> np.ndarray:
        """`[segments + 1]` int64: where the segments of document `i` begin in it, and its length."""
        documents, document_segments, segments = self._index
        return segments[document_segments[i] : document_segments[i + 1] + 1] - documents[i]

    def texts(self, i: int, name: str) -> list[np.ndarray]:
        """The int32 tokens of each text in a tokenised column of document `i`; of a column of one text, that one."""
        names = [column.name for column in self.columns if column.tokenised]
        first, end = self._texts[i * len(names) + names.index(name) :][:2]
        cuts = self._index[2][first : end + 1]
        return [self._tokens[a:b].astype(np.int32) for a, b in itertools.pairwise(cuts)]

    def value(self, i: int, name: str) -> Value:
        """What a column that is not tokenised holds in document `i`; a list is a tuple."""
        return self._values[name][i]

    @functools.cached_property
    def _texts(self) -> np.ndarray:
        return np.memmap(os.path.join(self.path, "texts.bin"), np.int64, "r")

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
) -> Store:
    """The store of the documents: the one in `cache_dir` if its fingerprint matches and it is whole, else a new one.

    Args:
      documents: called only if a store must be built; read as a stream.
      tokenizer: encodes each text as a whole: a document, or either side of a pair. A token that spans two sentences is
        the first one's, in which it begins.
      fingerprint_parts: what decides the documents (the corpus's fingerprint, the split ...), as JSON values.
      cache_dir: the folder of stores.
      columns: of the documents, if they are records.

    Raises:
      DataError: the documents hold no tokens.
      SaveError: the store cannot be written.
    """
    parts = {"format": _FORMAT, "tokenizer": tokenizer.fingerprint, **fingerprint_parts}
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
                meta = _write(folder, documents(), tokenizer, columns)
                meta |= {"fingerprint": fingerprint, "parts": parts}
                _write_meta(folder, meta)
                _publish(folder, final)
        except OSError as error:
            raise SaveError(
                f"data.cache_dir: cannot write a token store in {cache_dir!r} ({error.strerror})"
            ) from error
    return Store(str(final))


def _read_meta(folder: pathlib.Path) -> dict | None:
    """The meta data of a whole store; None if there is none, or a file is missing or of another size."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        whole = all((folder / name).stat().st_size == size for name, size in meta["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return meta if whole and meta["format"] == _FORMAT else None


def _write(
    folder: pathlib.Path, documents: Iterator[Document], tokenizer: Vocabulary, columns: Sequence[Column]
) -> dict:
    """Writes the tokens and offsets, batch by batch; returns the meta data.

    Raises:
      DataError: there are no tokens.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    num_documents = num_segments = num_tokens = num_bytes = 0
    pairs = False
    names = ("tokens.bin", *_INDEX_FILES)
    with contextlib.ExitStack() as stack:
        tokens, *index = (stack.enter_context(open(folder / name, "wb")) for name in names)
        records = RecordWriter(columns, lambda name: stack.enter_context(open(folder / name, "wb")))
        for file in index:
            np.zeros(1, np.int64).tofile(file)
        for batch in _batches(documents):
            pairs = batch[0].pair
            num_bytes += sum(len(segment.encode()) for document in batch for segment in document.segments)
            encoded = list(_encode(batch, tokenizer))
            if not encoded:
                continue
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
    """Runs of documents of about the same number of characters."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += sum(map(len, document.segments))
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(batch: list[Document], tokenizer: Vocabulary) -> Iterator[tuple[Document, np.ndarray, np.ndarray]]:
    """Each document, its tokens, and where its segments end in them; one without tokens is left out."""
    threads = os.cpu_count() or 1
    if batch[0].pair or batch[0].counts:
        encoded = iter(tokenizer.encode_batch([text for document in batch for text in document.segments], threads))
        for document in batch:
            texts = [next(encoded) for _ in document.segments]
            if any(texts):
                ids = np.array([i for text in texts for i in text], np.int32)
                yield document, ids, np.cumsum([len(text) for text in texts])
        return
    located = tokenizer.locate_batch([document.text for document in batch], threads)
    for document, (ids, starts) in zip(batch, located, strict=True):
        if len(ids):
            cuts = np.cumsum([len(segment) for segment in document.segments[:-1]], dtype=np.int64)
            ends = np.append(np.searchsorted(starts, cuts), len(ids))
            yield document, ids, np.unique(ends[ends > 0])


def _write_meta(folder: pathlib.Path, meta: dict) -> None:
    with open(folder / "meta.json", "w") as file:
        json.dump(meta, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def _publish(folder: pathlib.Path, final: pathlib.Path) -> None:
    """Gives the folder its final name, unless another builder was first; what is broken there goes."""
    with open(final.parent / ".publish.lock", "ab") as lock:
        _lock(lock, wait=True)
        if _read_meta(final) is None:
            shutil.rmtree(final, ignore_errors=True)
            folder.rename(final)
            _sync_folder(final.parent)


@contextlib.contextmanager
def _temporary_folder(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder for one builder; while the builder lives, it holds the lock beside the folder."""
    # The lock is held before the folder is there: a folder whose lock is free has no builder.
    with tempfile.NamedTemporaryFile(prefix=_TEMPORARY, suffix=".lock", dir=root) as file:
        _lock(file, wait=True)
        folder = pathlib.Path(file.name).with_suffix("")
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(root: pathlib.Path) -> None:
    """Removes the folders of builders that died."""
    for folder in root.glob(_TEMPORARY + "*"):
        lock = folder.with_suffix(".lock")
        with contextlib.suppress(OSError):
            if folder.is_dir():
                with open(lock, "rb") as file:
                    if _lock(file, wait=False):
                        shutil.rmtree(folder, ignore_errors=True)
                        lock.unlink(missing_ok=True)


def _lock(file, wait: bool) -> bool:
    """Whether the lock is now ours. Not every network file system has locks: there, nothing counts as stale."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _sync_folder(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
