"""Sequence to sequence: predicts a target from a source text (Sutskever et al. 2014, arXiv:1409.3215, section 2)."""

import dataclasses
import functools
from typing import ClassVar

import numpy as np
from pydantic import Field

from lmjax.data.packing import pack
from lmjax.data.store import Store
from lmjax.errors import DataError, FlagError
from lmjax.objectives.base import Features, ObjectiveConfig, Rows
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.rows import PackedPieces
from lmjax.objectives.samples import WORDS, Sample, framed, long_document
from lmjax.objectives.token_prediction import SourceToTarget


class Seq2SeqConfig(ObjectiveConfig):
    """Settings of the sequence-to-sequence objective."""

    prefix: str = Field("", description="words before each source, such as 'summarize: '; prompts get them too")


@dataclasses.dataclass(frozen=True)
class PackedPairs(PackedPieces, Rows):
    """Packed (source, target) documents; a source or target that is too long for an empty row is truncated."""

    objective: "Seq2Seq"

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features that `rows.source_target` makes."""
        del rng
        o, eos, pairs = self.objective, self.objective.tokenizer.eos_id, []
        for pair, _, _ in self.bounds(index):
            _, middle, end = self.store.segments(pair)
            lengths = np.array([middle + 1 + len(o.prefix)]), np.array([end - middle + 1])
            source, target = (int(each[0]) for each in o.kept(*lengths))
            source = self.store.tokens(pair, 0, source - 1 - len(o.prefix))
            target = self.store.tokens(pair, int(middle), target - 1)
            pairs.append((np.concatenate([o.prefix, source, [eos]]), np.append(target, eos)))
        return o.row(pairs)


@dataclasses.dataclass(frozen=True)
class Seq2Seq(SourceToTarget):
    """Predicts the target of a (source, target) pair."""

    config: Seq2SeqConfig
    name: ClassVar[str] = "seq2seq"
    wants_pairs: ClassVar[bool] = True

    @functools.cached_property
    def prefix(self) -> np.ndarray:
        """Returns the ids of the words before each source, int32."""
        return np.array(self.tokenizer.encode(self.config.prefix), np.int32)

    def prompt_format(self) -> PromptFormat:
        """Returns the format of a source that begins with the prefix."""
        return self.prefixed(self.config.prefix)

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
        """Returns packed pairs; logs what is truncated.

        Raises:
            DataError: the store holds running text.
            FlagError: the prefix does not fit a row.
        """
        if not store.pairs:
            raise DataError(f"{store.path}: seq2seq needs (source, target) pairs, and this store holds running text")
        if len(self.prefix) >= self.length // 2:
            raise FlagError(
                f"--config.task.seq2seq.prefix={self.config.prefix[:40]!r}: {len(self.prefix)} tokens are half or more "
                f"of a row of {self.length}; shorten it, or raise --config.task.length"
            )
        middles = np.array([store.segments(i)[1] for i in range(store.num_documents)], np.int64)
        whole = (middles + 1 + len(self.prefix), store.lengths - middles + 1)
        kept = self.kept(*whole)
        self.report(whole, kept)
        # `pack` gets costs instead of lengths: no cost is more than a row, so no pair is cut into several pieces.
        costs = self.row_positions(*kept)
        plan = pack(costs, max_piece=self.length, cost=lambda n: n, capacity=self.length, seed=seed)
        return PackedPairs(store, plan, self)
