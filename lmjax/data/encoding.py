"""Encodes the texts of records: each text by itself, or the parts of a running text together."""

from collections.abc import Sequence

import numpy as np

from lmjax.data.documents import Document
from lmjax.data.vocabulary import Vocabulary


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
