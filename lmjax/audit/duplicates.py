"""Documents that occur twice, exactly or nearly, and evaluation texts that stand in training data."""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

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
    loose = {digest(" ".join(words(text)) or text) for text in texts}
    exact = [digest(text.strip()) for text in texts]
    sides: dict[int, set[bool]] = {}
    for own, side in zip(exact, held_out, strict=True):
        sides.setdefault(own, set()).add(side)
    largest = max(collections.Counter(exact).values(), default=0)
    apart = sum(len(side) > 1 for side in sides.values())
    return Copies(len(texts) - len(sides), len(texts) - len(loose), largest, apart)


def near_duplicates(texts: Sequence[str], threshold: float = 0.8) -> list[Near]:
    """Returns the pairs of documents whose shingles of 5 words have at least this Jaccard similarity.

    Candidates are found by MinHash and banding (Broder 1997; datasketch), which can miss a pair near the threshold, and
    then compared exactly.

    Args:
        texts: the documents.
        threshold: from 0 to 1.

    Raises:
        FlagError: datasketch is not installed.
    """
    library = required("datasketch", "audit")
    index = library.MinHashLSH(threshold=max(0.1, threshold - 0.1), num_perm=_PERMUTATIONS)
    shingles, found = [grams(text, SHINGLE) for text in texts], []
    for i, own in enumerate(shingles):
        if not own:
            continue
        sketch = library.MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=lambda x: x & 0xFFFFFFFF)
        sketch.update_batch(list(own))
        for j in sorted(index.query(sketch)):
            similarity = len(own & shingles[j]) / len(own | shingles[j])
            if similarity >= threshold:
                found.append(Near(j, i, similarity))
        index.insert(i, sketch)
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
