"""Next-sentence prediction: whether text B follows text A (Devlin et al. 2019, arXiv:1810.04805, section 3.1)."""

import bisect
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from lmjax.data.store import Store
from lmjax.errors import DataError
from lmjax.objectives.base import Batch, Features, Forward, Objective, ObjectiveConfig, Rows
from lmjax.objectives.losses import class_loss
from lmjax.objectives.masked_lm import MaskedLM
from lmjax.objectives.rows import pad
from lmjax.objectives.sums import LossSum

IS_NEXT, IS_RANDOM = 0, 1
SPECIALS = 3  # [CLS] A [SEP] B [SEP]


class NextSentenceConfig(ObjectiveConfig):
    """Settings of the next-sentence objective."""

    random_rate: float = Field(0.5, ge=0, le=1, description="share of the pairs whose B comes from another document")


def sentence_groups(store: Store, budget: int) -> np.ndarray:
    """Returns int64 `[groups, 3]`: document, first sentence and end (exclusive) of groups of consecutive sentences.

    A group has as many sentences of one document as fit into `budget` tokens, and at least two. Two sentences that do
    not fit are truncated when the row is made.
    """
    groups = []
    for document in range(store.num_documents):
        bounds = store.segments(document)
        first, last = 0, len(bounds) - 1
        while last - first >= 2:
            fits = int(np.searchsorted(bounds, bounds[first] + budget, side="right")) - 1
            end = min(max(fits, first + 2), last)
            groups.append((document, first, end))
            first = end
    return np.array(groups, np.int64).reshape(-1, 3)


@dataclasses.dataclass(frozen=True)
class SentencePairs(Rows):
    """Rows with one pair of texts each, made from groups of sentences.

    Attributes:
        store: the documents.
        groups: the result of `sentence_groups`.
        length: tokens in a row.
        pad_id: id of the padding.
        cls_id: id before the pair.
        sep_id: id after each text.
    """

    store: Store
    groups: np.ndarray
    length: int
    pad_id: int
    cls_id: int
    sep_id: int

    def __len__(self) -> int:
        return len(self.groups)

    def documents(self, index: int) -> list[int]:
        """Returns the document of the group; a B from another document is counted there too."""
        return [int(self.groups[index, 0])]

    def text(self, document: int, bounds: np.ndarray, first: int, end: int) -> np.ndarray:
        """Returns the tokens of sentences `first` to `end` - 1 of a document, whose sentences begin at `bounds`."""
        start = int(bounds[first])
        return self.store.tokens(int(document), start, int(bounds[end]) - start)

    def pair(self, a: np.ndarray, b: np.ndarray, label: int) -> Features:
        """Returns `tokens`, `positions`, `segment_ids`, `type_ids` `[length]`, and the label and weight as scalars."""
        tokens = np.concatenate([[self.cls_id], a, [self.sep_id], b, [self.sep_id]])
        types = np.repeat([0, 1], [len(a) + 2, len(b) + 1])
        return {
            "tokens": pad(tokens, self.length, self.pad_id),
            "positions": pad(np.arange(len(tokens)), self.length),
            "segment_ids": pad(np.ones(len(tokens)), self.length),
            "type_ids": pad(types, self.length),
            "next_sentence_labels": np.int32(label),
            "next_sentence_weights": np.float32(1),
        }


@dataclasses.dataclass(frozen=True)
class NextPairs(SentencePairs):
    """Pairs in which A is the beginning of a group of sentences, and B the rest of it or sentences of another document.

    The label is 1 if B is from another document.
    """

    random_rate: float

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features that `pair` makes."""
        document, first, end = self.groups[index]
        bounds = self.store.segments(document)
        split = int(rng.integers(first + 1, end))
        a = self.text(document, bounds, first, split)
        b = self.text(document, bounds, split, end)
        room = self.length - SPECIALS
        # A is truncated at its start and B at its end, because the label depends on where A and B meet.
        most = max(room - len(a), room // 2)
        label = IS_NEXT
        if rng.random() < self.random_rate:
            b, label = self._random_text(document, b[:most], room - len(a), rng), IS_RANDOM
        b = b[:most]
        return self.pair(a[max(0, len(a) + len(b) - room) :], b, label)

    def _random_text(self, document: int, true_next: np.ndarray, budget: int, rng: np.random.Generator) -> np.ndarray:
        """Returns sentences of another document that differ from the true continuation within their common length.

        They begin and end by the same rules as true continuations (they begin inside a group, and end at the last
        sentence that fits or at the end of the document), so that the label does not show in the length.
        """
        # bisect, because searchsorted would copy the column.
        own, after = (bisect.bisect_left(self.groups[:, 0], d) for d in (document, document + 1))
        for _ in range(100):
            draw = int(rng.integers(len(self.groups) - (after - own)))
            other, first, end = self.groups[draw if draw < own else draw + after - own]
            start = int(rng.integers(first + 1, end))
            bounds = self.store.segments(other)
            fits = int(np.searchsorted(bounds, bounds[start] + budget, side="right")) - 1
            text = self.text(other, bounds, start, max(fits, start + 1))
            shared = min(len(text), len(true_next))
            if not np.array_equal(text[:shared], true_next[:shared]):
                return text
        raise DataError(
            "nsp found no sentence of another document that differs from the true next one in 100 tries; "
            "the data needs more than one distinct document of two sentences or more"
        )


class PairClassification(Objective):
    """An objective that classifies pairs of texts into two classes, at the first position of the row."""

    architectures: ClassVar[tuple[str, ...]] = ("encoder",)
    heads: ClassVar[tuple[str, ...]] = ("next_sentence",)
    rows_for: ClassVar[tuple[type[Objective], ...]] = (MaskedLM,)
    num_types: ClassVar[int] = 2

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of pairs."""
        return {self.name: jnp.sum(batch["next_sentence_weights"])}

    @classmethod
    def penalised_by(cls, config: ObjectiveConfig) -> tuple[str, ...]:
        """Returns none: those of the vocabulary are enough."""
        del config
        return ()

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the sums over the pairs."""
        logits = forward.head("next_sentence", forward.hidden)
        return {self.name: class_loss(logits, batch["next_sentence_labels"], batch["next_sentence_weights"])}


@dataclasses.dataclass(frozen=True)
class NextSentence(PairClassification):
    """Classifies a pair of texts: 0 if B follows A, 1 if it comes from another document."""

    config: NextSentenceConfig
    name: ClassVar[str] = "nsp"

    def rows(self, store: Store, seed: int) -> NextPairs:
        """Returns one pair for each group of sentences; raises DataError for fewer than two documents with a group."""
        del seed
        groups = sentence_groups(store, self.length - SPECIALS)
        if len(np.unique(groups[:, 0])) < 2:
            raise DataError(
                "nsp needs at least two documents of two sentences or more; "
                f"the data has {len(np.unique(groups[:, 0]))}: separate documents by blank lines or put one in a file"
            )
        t = self.tokenizer
        return NextPairs(store, groups, self.length, t.pad_id, t.cls_id, t.sep_id, self.config.random_rate)
