"""How documents become token ids: running text, pairs, and records with one or several texts."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lmjax.data.columns import Column
from lmjax.data.documents import Document
from lmjax.data.vocabulary import Vocabulary


class Encoder:
    """Encodes each text of a document as a whole; a subclass makes tokens in another way.

    A token that spans two sentences belongs to the first of them.

    Attributes:
        tokenizer: of the ids, which a run keeps.
        columns: of the documents that it yields; None: those of the documents that it is given.
    """

    columns: tuple[Column, ...] | None = None

    def __init__(self, tokenizer: Vocabulary):
        """Takes the tokenizer."""
        self.tokenizer = tokenizer

    @property
    def parts(self) -> dict[str, Any]:
        """Returns what changes the tokens in addition to the tokenizer, as JSON values."""
        return {}

    def __call__(self, documents: list[Document]) -> Iterator[tuple[Document, np.ndarray, np.ndarray]]:
        """Yields documents that have tokens or values, each with its tokens and the ends of its segments in them."""
        threads = os.cpu_count() or 1
        if documents[0].pair or documents[0].counts:
            # A pair is a record of two texts.
            pairs = [each._replace(counts=(1, 1)) if each.pair else each for each in documents]
            for document, texts in zip(documents, encode_records(pairs, self.tokenizer, threads), strict=True):
                if any(map(len, texts)) or document.values:
                    ids = np.concatenate([np.zeros(0, np.int32), *texts])
                    yield document, ids, np.cumsum([len(text) for text in texts], dtype=np.int64)
            return
        located = self.tokenizer.locate_batch([document.text for document in documents], threads)
        for document, (ids, starts) in zip(documents, located, strict=True):
            if len(ids):
                cuts = np.cumsum([len(segment) for segment in document.segments[:-1]], dtype=np.int64)
                ends = np.append(np.searchsorted(starts, cuts), len(ids))
                yield document, ids, np.unique(ends[ends > 0])


def encode_records(documents: Sequence[Document], tokenizer: Vocabulary, threads: int = 1) -> list[list[np.ndarray]]:
    """Returns the token ids of each segment of each record, int32.

    A running text is encoded as a whole, so its tokens are those of the text without its division into segments. A
    token belongs to the segment in which it begins, so a segment can be without tokens.

    Args:
        documents: records.
        tokenizer: of the ids.
        threads: number of threads.
    """
    parts = [part for document in documents for part in _parts(document)]
    located = iter(tokenizer.locate_batch(["".join(texts) for texts, running in parts if running], threads))
    encoded = iter(tokenizer.encode_batch([text for texts, running in parts if not running for text in texts], threads))
    found = iter(
        _cut(texts, *next(located)) if running else [np.array(next(encoded), np.int32) for _ in texts]
        for texts, running in parts
    )
    return [[ids for _ in document.counts for ids in next(found)] for document in documents]


def _parts(document: Document) -> list[tuple[tuple[str, ...], bool]]:
    """Returns the texts of each tokenised column of a record, and whether they are parts of one running text."""
    ends = np.cumsum(document.counts).tolist()
    starts = (end - count for end, count in zip(ends, document.counts, strict=True))
    running = document.running or (False,) * len(ends)
    return [(document.segments[a:b], each) for a, b, each in zip(starts, ends, running, strict=True)]


def _cut(texts: Sequence[str], ids: np.ndarray, starts: np.ndarray) -> list[np.ndarray]:
    """Returns the ids of the tokens that begin in each of the texts."""
    if not texts:
        return []
    cuts = np.cumsum([len(text) for text in texts[:-1]], dtype=np.int64)
    return np.split(ids, np.searchsorted(starts, cuts))
