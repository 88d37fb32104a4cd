"""Sentence order: whether the two parts of a text are swapped (Lan et al. 2020, arXiv:1909.11942, section 3.1)."""

import dataclasses
from typing import ClassVar

import numpy as np
from pydantic import Field

from lmjax.data.store import Store
from lmjax.errors import DataError
from lmjax.objectives.base import Features, ObjectiveConfig
from lmjax.objectives.next_sentence import SPECIALS, PairClassification, SentencePairs, sentence_groups

IN_ORDER, SWAPPED = 0, 1


class SentenceOrderConfig(ObjectiveConfig):
    """Settings of the sentence-order objective."""

    swap_rate: float = Field(0.5, ge=0, le=1, description="share of the pairs whose parts are swapped")


@dataclasses.dataclass(frozen=True)
class OrderedPairs(SentencePairs):
    """Rows with one pair each: the two parts of a group of sentences, in their order or swapped."""

    swap_rate: float

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features that `SentencePairs.pair` makes; the label is 1 if the parts are swapped."""
        document, first, end = self.groups[index]
        bounds = self.store.segments(document)
        split = int(rng.integers(first + 1, end))
        room = self.length - SPECIALS
        parts = [self.text(document, bounds, first, split), self.text(document, bounds, split, end)]
        # Both parts are truncated at their ends, so that the truncation does not show which part was first.
        halves = (room - room // 2, room // 2)
        rooms = [max(room - len(parts[1 - i]), halves[i]) for i in (0, 1)]
        parts = [part[:most] for part, most in zip(parts, rooms, strict=True)]
        label = int(rng.random() < self.swap_rate)
        return self.pair(*(reversed(parts) if label == SWAPPED else parts), label)


@dataclasses.dataclass(frozen=True)
class SentenceOrder(PairClassification):
    """Classifies two parts of a text: 0 if they are in their original order, 1 if they are swapped."""

    config: SentenceOrderConfig
    name: ClassVar[str] = "sop"

    def rows(self, store: Store, seed: int) -> OrderedPairs:
        """Returns one pair for each group of sentences; raises DataError if there is no group."""
        del seed
        groups = sentence_groups(store, self.length - SPECIALS)
        if not len(groups):
            raise DataError("sop needs a document of two sentences or more; the data has none: check what --data names")
        t = self.tokenizer
        return OrderedPairs(store, groups, self.length, t.pad_id, t.cls_id, t.sep_id, self.config.swap_rate)
