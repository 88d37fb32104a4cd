"""Text infilling (BART: Lewis et al. 2020, arXiv:1910.13461, section 2.2): predicts a text from one with masked spans.

One mask token replaces each span, whatever its length, so the model also predicts how many tokens are missing.
Sentences can be shuffled too.
"""

import dataclasses
from typing import ClassVar

import numpy as np
from pydantic import Field

from lmjax.data.store import Store
from lmjax.objectives.base import Features, ObjectiveConfig, Rows
from lmjax.objectives.rows import PackedPieces
from lmjax.objectives.samples import Sample, beginning, framed
from lmjax.objectives.span_corruption import random_gaps, random_partition
from lmjax.objectives.token_prediction import SourceToTarget
from lmjax.streams import random_stream


class InfillingConfig(ObjectiveConfig):
    """Settings of the text-infilling objective."""

    mask_rate: float = Field(0.3, gt=0, lt=1, description="share of the tokens that are taken out")
    mean_span_length: float = Field(3.0, gt=0, description="mean of the Poisson distribution of a span's tokens")
    permute_sentences: bool = Field(False, description="shuffle the sentences of the source, as BART does too")


def span_lengths(count: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Returns lengths drawn from a Poisson distribution until they add up to `count`; the last one is cut to fit.

    A span of length 0 inserts a mask and removes nothing. There are never so many of these that a source is longer than
    its text.
    """
    lengths = np.zeros(0, np.int64)
    while lengths.sum() < count:
        lengths = np.concatenate([lengths, rng.poisson(mean, 1 + int(2 * count / mean))])
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), count)) + 1]
    lengths[-1] -= lengths.sum() - count
    empty = np.flatnonzero(lengths == 0)
    return np.delete(lengths, empty[max(0, count - (len(lengths) - len(empty))) :])


def mask_spans(tokens: np.ndarray, config: InfillingConfig, mask_id: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `tokens` with each of several random spans replaced by one mask; never more tokens than before.

    Masks are not adjacent, unless too few tokens are left to separate them.
    """
    lengths = span_lengths(max(1, round(len(tokens) * config.mask_rate)), config.mean_span_length, rng)
    kept = len(tokens) - int(lengths.sum())
    if kept < len(lengths) - 1:
        # Too few tokens are left to separate the masks: spans of length 0 are dropped, then spans are joined.
        lengths = random_partition(int(lengths.sum()), min(int((lengths > 0).sum()), kept + 1), rng)
    lengths = rng.permutation(lengths)
    between = random_gaps(kept, len(lengths), rng)
    starts = np.cumsum(between[:-1]) + np.cumsum(lengths) - lengths
    keep = np.ones(len(tokens) + 1, bool)
    keep[-1] = False
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        keep[start : start + length] = False
    # The mask is inserted before the first token after its span.
    masked = np.insert(np.append(tokens, 0), starts + lengths, mask_id)
    return masked[np.insert(keep, starts + lengths, True)]


@dataclasses.dataclass(frozen=True)
class MaskedPieces(PackedPieces, Rows):
    """Packed pieces of documents, each with its own masked spans."""

    objective: "Infilling"

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features that `rows.source_target` makes."""
        o, t = self.objective, self.objective.tokenizer
        pairs = []
        for document, start, length in self.bounds(index):
            text = self.store.tokens(document, start, length)
            source = self._permuted(document, start, text, rng) if o.config.permute_sentences else text
            source = mask_spans(source, o.config, t.mask_id, rng)
            pairs.append((np.append(source, t.eos_id), np.append(text, t.eos_id)))
        return o.row(pairs)

    def _permuted(self, document: int, start: int, text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        cuts = self.store.segments(document) - start
        sentences = np.split(text, cuts[(cuts > 0) & (cuts < len(text))])
        return np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])


@dataclasses.dataclass(frozen=True)
class Infilling(SourceToTarget):
    """Predicts a whole text from one with masked spans."""

    config: InfillingConfig
    name: ClassVar[str] = "infilling"
    architectures: ClassVar[tuple[str, ...]] = ("encoder_decoder",)

    def sample(self, store: Store, room: int) -> Sample:
        """Returns a text with masked spans, for which the model generates the whole text."""
        t, tokens = self.tokenizer, beginning(store, room)
        source = mask_spans(tokens, self.config, t.mask_id, random_stream(0, "infilled sample")).tolist()
        shown = "".join("[MASK]" if i == t.mask_id else t.decode([i]) for i in source)
        above = framed("a held-out text with holes:", shown)
        return Sample(above, tuple(source), lambda ids: framed("written:", t.decode(ids)), count=2 * len(tokens))

    def rows(self, store: Store, seed: int) -> MaskedPieces:
        """Returns packed pieces; in source and target, each takes the length of its text and an EOS."""
        return MaskedPieces(store, self.plan(store, lambda n: self.row_positions(n + 1, n + 1), seed), self)
