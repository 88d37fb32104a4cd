"""Which source word a decoder reads for each target word, compared with alignments made by hand.

A file of gold alignments is JSONL or CSV with `source` and `target`, texts whose words stand apart by spaces, and
`sure`, the links "S-T S-T ..." between the S-th source word and the T-th target word, numbered from 0. `possible`, if
it is given, has links that are neither wrong nor demanded; sure links are possible too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.data.documents import spaced
from lmjax.data.fields import Fields, text_of
from lmjax.data.files import find_files
from lmjax.errors import DataError, FlagError
from lmjax.evaluation.records import read_records
from lmjax.inference.loaded import LoadedModel

Links = frozenset[tuple[int, int]]


class Aligned(NamedTuple):
    """A pair of texts, and its links (source word, target word) that are demanded and that are allowed."""

    source: str
    target: str
    sure: Links
    possible: Links


def read_gold(path: str) -> list[Aligned]:
    """Returns the pairs of a file of gold alignments.

    Raises:
        DataError: the file has none, or a link names no word; the message names file and line.
    """
    found = [_pair(where, fields) for file in find_files(path) for where, fields in read_records(file)]
    if not found:
        raise DataError(f"{path}: holds no alignments; give it at least one")
    return found


def _pair(where: str, fields: Fields) -> Aligned:
    need = "an alignment needs source, target and sure"
    source, target, sure = (text_of(where, fields, name, need) for name in ("source", "target", "sure"))
    sizes = len(source.split()), len(target.split())
    possible = text_of(where, fields, "possible", need) if "possible" in fields else ""
    links = [_links(where, text, sizes) for text in (sure, possible)]
    return Aligned(source, target, links[0], links[0] | links[1])


def _links(where: str, text: str, sizes: tuple[int, int]) -> Links:
    found = set()
    for link in text.split():
        if not (numbers := re.fullmatch(r"(\d+)-(\d+)", link)):
            raise DataError(f"{where}: {link[:20]!r} is no link; write 0-0 for the first words of both texts")
        pair = tuple(map(int, numbers.groups()))
        if any(number >= size for number, size in zip(pair, sizes, strict=True)):
            raise DataError(f"{where}: link {link} of texts with {sizes[0]} and {sizes[1]} words; words count from 0")
        found.add(pair)
    return frozenset(found)


def alignment_error_rate(found: Sequence[Iterable[tuple[int, int]]], gold: Sequence[Aligned]) -> float:
    """Returns the alignment error rate over all pairs, from 0 to 1 (Och and Ney 2003, section 6).

    `1 - (|A and sure| + |A and possible|) / (|A| + |sure|)`, with the links `A` that were found.

    Args:
        found: the links of each pair.
        gold: the pairs.
    """
    right = total = 0
    for links, pair in zip(map(frozenset, found), gold, strict=True):
        right += len(links & pair.sure) + len(links & pair.possible)
        total += len(links) + len(pair.sure)
    if not total:
        raise DataError("neither the model nor the gold alignments have a link, so that there is no error rate")
    return 1 - right / total


def word_attention(loaded: LoadedModel, source: str, target: str) -> np.ndarray:
    """Returns how much of each source word each layer reads to predict each target word.

    The shape is `[decoder layers, target words, source words]`. The heads of a layer are averaged; the shares of a
    source word's tokens are summed, and those of a target word's tokens are averaged. Special tokens are left out.

    Args:
        loaded: an encoder-decoder.
        source: what its encoder reads, words with spaces between them.
        target: what its decoder predicts.

    Raises:
        FlagError: the model is no encoder-decoder, or it cannot read the texts.
    """
    if not loaded.config.family.paired:
        raise FlagError(f"an alignment needs an encoder-decoder, and this is a {loaded.config.family.label}")
    (reads, own), (writes, other) = (_tokens(loaded, text) for text in (source, target))
    before, start = len(loaded.prompts.before), len(loaded.prompts.start)
    output = loaded([loaded.prompts.around(reads)], targets=[writes], output_attentions=True)
    weights = np.stack([layer[0].mean(axis=0) for layer in output.cross_attentions])
    # The position that reads the last start token predicts the first token of the target.
    weights = weights[:, start - 1 : start - 1 + len(writes), before : before + len(reads)]
    sums = np.stack([weights[:, :, own == i].sum(axis=2) for i in range(len(source.split()))], axis=2)
    return np.stack([sums[:, other == i].mean(axis=1) for i in range(len(target.split()))], axis=1)


def _tokens(loaded: LoadedModel, text: str) -> tuple[list[int], np.ndarray]:
    """Returns the ids of a text, and the number of the word of each."""
    words = text.split()
    if not words:
        raise FlagError("a text without words has no alignment; give it one")
    ids, starts = loaded.tokenizer.locate_batch([" ".join(words)], 1)[0]
    ends = np.cumsum([len(word) for word in spaced(words)])
    numbers = np.searchsorted(ends, starts, side="right")
    if missing := set(range(len(words))) - set(numbers.tolist()):
        raise FlagError(f"text={text[:40]!r}: the word {words[min(missing)]!r} has no token of its own")
    return ids.tolist(), numbers


def align(loaded: LoadedModel, pairs: Sequence[Aligned], layer: int = -1) -> list[Links]:
    """Returns for each pair the link of every target word to the source word of which a layer reads most.

    Args:
        loaded: an encoder-decoder.
        pairs: whose texts are aligned; their links are not used.
        layer: number of a layer of the decoder; -1: the last.

    Raises:
        FlagError: the model is no encoder-decoder, has no such layer, or cannot read the texts.
    """
    found = []
    for pair in pairs:
        weights = word_attention(loaded, pair.source, pair.target)
        if not -len(weights) <= layer < len(weights):
            raise FlagError(f"layer={layer}: the model has {len(weights)} layers, from 0 to {len(weights) - 1}")
        found.append(frozenset((int(s), t) for t, s in enumerate(weights[layer].argmax(axis=1))))
    return found
