"""Sequence to sequence: predicts a target from a source text (Sutskever et al. 2014, arXiv:1409.3215, section 2)."""

import dataclasses
from typing import ClassVar

import numpy as np

from lmjax.data.packing import pack
from lmjax.data.store import Store
from lmjax.errors import DataError
from lmjax.objectives.base import Features, ObjectiveConfig, Rows
from lmjax.objectives.rows import PackedPieces
from lmjax.objectives.samples import WORDS, Sample, framed, long_document
from lmjax.objectives.token_prediction import SourceToTarget


class Seq2SeqConfig(ObjectiveConfig):
    """Settings of the sequence-to-sequence objective."""


@dataclasses.dataclass(frozen=True)
class PackedPairs(PackedPieces, Rows):
    """Packed (source, target) documents; a source or target that is too long for an empty row is truncated."""

    objective: "Seq2Seq"

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features that `rows.source_target` makes."""
        del rng
        o, t = self.objective, self.objective.tokenizer
        source_room, target_room = o.room()
        pairs = []
        for pair, _, _ in self.bounds(index):
            _, middle, end = self.store.segments(pair)
            source = self.store.tokens(pair, 0, min(int(middle), source_room - 1))
            target = self.store.tokens(pair, int(middle), min(int(end - middle), target_room - 1))
            pairs.append((np.append(source, t.eos_id), np.append(target, t.eos_id)))
        return o.row(pairs)


@dataclasses.dataclass(frozen=True)
class Seq2Seq(SourceToTarget):
    """Predicts the target of a (source, target) pair."""

    config: Seq2SeqConfig
    name: ClassVar[str] = "seq2seq"
    wants_pairs: ClassVar[bool] = True

    def room(self) -> tuple[int, int]:
        """Returns the most tokens of a source and of a target in a row, including EOS."""
        if not self.family.paired:
            target = min(self.target_length, self.length // 2)
            return self.length - target, target
        return self.length, self.target_length

    def sample(self, store: Store, room: int) -> Sample:
        """Returns a source, for which the model generates a target."""
        decode, document = self.tokenizer.decode, long_document(store)
        _, middle, end = store.segments(document).tolist()
        source = store.tokens(document, 0, min(middle, room // 3 - 2)).tolist()
        above = [
            framed("a held-out source:", decode(source)),
            framed("its target:", decode(store.tokens(document, middle, end - middle))),
        ]
        return Sample(
            "\n".join(above),
            tuple(source),
            lambda ids: framed("written:", decode(ids)),
            count=min(WORDS, room // 3),
            sampled=self.family.continues,
        )

    def rows(self, store: Store, seed: int) -> PackedPairs:
        """Returns packed pairs; raises DataError if the store holds running text."""
        if not store.pairs:
            raise DataError(f"{store.path}: seq2seq needs (source, target) pairs, and this store holds running text")
        middles = np.array([store.segments(i)[1] for i in range(store.num_documents)])
        source_room, target_room = self.room()
        source = np.minimum(middles + 1, source_room)
        target = np.minimum(store.lengths - middles + 1, target_room)
        # `pack` gets costs instead of lengths: no cost is more than a row, so no pair is cut into several pieces.
        plan = pack(
            self.row_positions(source, target), max_piece=self.length, cost=lambda n: n, capacity=self.length, seed=seed
        )
        return PackedPairs(store, plan, self)
