"""Documents that occur twice, exactly or nearly, and evaluation texts that stand in training data."""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmjax.evaluation.intervals import required

# Words of a shingle, of which near duplicates share most.
SHINGLE = 5
# Words of an n-gram that makes an evaluation text contaminated (Brown et al. 2020, arXiv:2005.14165, appendix C).
NGRAM = 13
_PERMUTATIONS = 128


class Near(NamedTuple):
    """Two documents with many shingles in common, by their numbers, and the Jaccard similarity of their shingles."""

    first: int
    second: int
    similarity: float


class Copies(NamedTuple):
    """What repeats in a list of documents.

    Attributes:
        exact: documents that are equal to an earlier one but for white space around them.
        loose: documents whose words are those of an earlier one, those of `exact` among them.
        largest: documents in the largest set of equal ones.
        apart: sets of equal documents of which one is in the training and one in the held-out part.
    """

    exact: int
    loose: int
    largest: int
    apart: int


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.casefold())


def digest(text: str) -> int:
    """Returns a 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def loose(text: str) -> int:
    """Returns a hash of a text that its case, punctuation and white space do not change."""
    return digest(" ".join(words(text)) or text.strip())


def grams(text: str, size: int) -> set[int]:
    """Returns the hashes of all runs of so many words; of a shorter text, of all its words."""
    own = words(text)
    count = max(1, len(own) - size + 1)
    return {digest(" ".join(own[i : i + size])) for i in range(count)} if own else set()


def copies(texts: Sequence[str], held_out: Sequence[bool]) -> Copies:
    """Returns how many documents are copies of earlier ones.

    Args:
        texts: the documents.
        held_out: whether each of them is held out.
    """
    wordings = {loose(text) for text in texts}
    exact = [digest(text.strip()) for text in texts]
    sides: dict[int, set[bool]] = {}
    for own, side in zip(exact, held_out, strict=True):
        sides.setdefault(own, set()).add(side)
    largest = max(collections.Counter(exact).values(), default=0)
    apart = sum(len(side) > 1 for side in sides.values())
    return Copies(len(texts) - len(sides), len(texts) - len(wordings), largest, apart)


class Sketch(NamedTuple):
    """The shingles of a text, as hashes, and their MinHash."""

    shingles: set[int]
    hashes: Any


class NearIndex:
    """Finds the texts whose shingles of 5 words have at least some Jaccard similarity with a text.

    Candidates are found by MinHash and banding (Broder 1997; datasketch), which can miss a pair near the threshold, and
    then compared exactly.
    """

    def __init__(self, threshold: float = 0.8):
        """Takes the similarity, from 0 to 1; raises FlagError if datasketch is not installed."""
        self._library = required("datasketch", "audit")
        self._threshold = threshold
        self._index = self._library.MinHashLSH(threshold=max(0.1, threshold - 0.1), num_perm=_PERMUTATIONS)
        self._shingles: list[set[int]] = []

    def sketch(self, text: str) -> Sketch:
        """Returns the shingles of a text, and their MinHash."""
        own = grams(text, SHINGLE)
        made = self._library.MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=lambda x: x & 0xFFFFFFFF)
        if own:
            made.update_batch(list(own))
        return Sketch(own, made)

    def similar(self, text: Sketch) -> list[tuple[int, float]]:
        """Returns the numbers of the similar texts among those that were added, in order, and their similarities."""
        found = []
        for j in sorted(self._index.query(text.hashes)) if text.shingles else ():
            both = len(text.shingles & self._shingles[j])
            similarity = both / (len(text.shingles) + len(self._shingles[j]) - both)
            if similarity >= self._threshold:
                found.append((j, similarity))
        return found

    def add(self, text: Sketch) -> None:
        """Adds a text, whose number is how many were added before."""
        if text.shingles:
            self._index.insert(len(self._shingles), text.hashes)
        self._shingles.append(text.shingles)


def near_duplicates(texts: Sequence[str], threshold: float = 0.8) -> list[Near]:
    """Returns the pairs of documents that `NearIndex` finds similar.

    Args:
        texts: the documents.
        threshold: from 0 to 1.

    Raises:
        FlagError: datasketch is not installed.
    """
    index, found = NearIndex(threshold), []
    for i, text in enumerate(texts):
        sketched = index.sketch(text)
        found += [Near(j, i, similarity) for j, similarity in index.similar(sketched)]
        index.add(sketched)
    return found


def contamination(texts: Sequence[str], training: Iterable[str], size: int = NGRAM) -> np.ndarray:
    """Returns the share of each evaluation text's n-grams that stand in the training texts, `[texts]`.

    Only the n-grams of the evaluation texts are kept in memory. A text with fewer words counts as one n-gram, which
    must stand in the training text as the same run of words.

    Args:
        texts: the evaluation texts.
        training: the training texts, which are read once.
        size: words of an n-gram.
    """
    own = [grams(text, size) for text in texts]
    sizes = sorted({min(size, len(words(text))) for text in texts} - {0})
    wanted: set[int] = set().union(*own)
    there: set[int] = set()
    for text in training:
        spoken = words(text)
        for length in sizes:
            there |= wanted & {digest(" ".join(spoken[i : i + length])) for i in range(len(spoken) - length + 1)}
    return np.array([len(grams_of & there) / len(grams_of) if grams_of else 0.0 for grams_of in own])
