"""Next-token prediction: each token is predicted from those before it (Radford et al. 2018, section 3.1)."""

import dataclasses
from typing import ClassVar, Self

import numpy as np

from lmjax.data.packing import pack
from lmjax.data.store import Store
from lmjax.objectives.base import Features, Objective, ObjectiveConfig, Rows
from lmjax.objectives.rows import PackedPieces, pad, side
from lmjax.objectives.token_prediction import TokenPrediction


class NextTokenConfig(ObjectiveConfig):
    """Settings of the next-token objective."""


@dataclasses.dataclass(frozen=True)
class Windows(PackedPieces, Rows):
    """Windows over (BOS, document, EOS); together they predict each token and each EOS exactly once."""

    length: int
    pad_id: int
    bos_id: int
    eos_id: int

    @classmethod
    def of(cls, objective: Objective, store: Store, seed: int) -> Self:
        """Returns windows of at most the objective's `length` targets, packed to fill the rows."""
        length, t = objective.length, objective.tokenizer
        plan = pack(store.lengths + 1, max_piece=length, cost=lambda n: n, capacity=length, seed=seed)
        return cls(store, plan, length, t.pad_id, t.bos_id, t.eos_id)

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns `tokens`, `targets`, `weights`, `positions` and `segment_ids`, each `[length]`."""
        del rng
        inputs, targets = [], []
        for document, start, length in self.bounds(index):
            # The window has the targets start to start + length - 1: tokens of the document, then its EOS.
            whole = self.store.lengths[document]
            before = [self.bos_id] if start == 0 else self.store.tokens(document, start - 1, 1)
            body = self.store.tokens(document, start, min(length, whole - start))
            after = [self.eos_id] if start + length > whole else []
            window = np.concatenate([before, body, after]).astype(np.int32)
            inputs.append(window[:-1])
            targets.append(window[1:])
        target = np.concatenate(targets)
        return {
            **side(inputs, self.length, self.pad_id),
            "targets": pad(target, self.length, self.pad_id),
            "weights": pad(np.ones(len(target)), self.length, dtype=np.float32),
        }


@dataclasses.dataclass(frozen=True)
class NextToken(TokenPrediction):
    """Predicts each token, and the end of each document, from the tokens before it."""

    config: NextTokenConfig
    name: ClassVar[str] = "next_token"
    architectures: ClassVar[tuple[str, ...]] = ("decoder",)
    usual_for: ClassVar[tuple[str, ...]] = ("decoder",)

    def rows(self, store: Store, seed: int) -> Windows:
        """Returns windows of at most `length` targets, packed to fill the rows."""
        return Windows.of(self, store, seed)
