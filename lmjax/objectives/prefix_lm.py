"""Prefix language modelling: the rest of a text from its beginning, which is read in both directions.

Raffel et al. 2020, arXiv:1910.10683, section 3.2.1; in an encoder-decoder the beginning is the encoder's and the rest
the decoder's, as in T5's adaptation to language modelling (Lester et al. 2021, arXiv:2104.08691, section 3.1). Where a
text is split is drawn anew in every epoch.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from lmjax.data.store import Store
from lmjax.objectives.base import Features, Objective, ObjectiveConfig, Rows
from lmjax.objectives.next_token import Windows
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.rows import PackedPieces
from lmjax.objectives.token_prediction import SourceToTarget


class PrefixLMConfig(ObjectiveConfig):
    """Settings of the prefix-LM objective."""


@dataclasses.dataclass(frozen=True)
class SplitPieces(PackedPieces, Rows):
    """Packed pieces of documents for an encoder-decoder, each split in two."""

    objective: "PrefixLM"

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features of `rows.source_target`."""
        o, eos = self.objective, [self.objective.tokenizer.eos_id]
        pairs = []
        for piece in self.tokens(index):
            split = len(piece) - int(rng.integers(1, o.longest_rest(np.array(len(piece))) + 1))
            pairs.append((np.concatenate([piece[:split], eos]), np.concatenate([piece[split:], eos])))
        return o.row(pairs)


@dataclasses.dataclass(frozen=True)
class PrefixWindows(Windows):
    """The next-token objective's windows for a decoder, each with a prefix that is seen and not predicted."""

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features of `Windows`, the weights of the targets alone, and `prefix` `[length]`, int32 0/1."""
        features = super().features(index, rng)
        prefix = np.zeros(self.length, np.int32)
        start = 0
        for _, _, length in self.bounds(index):
            # Of the inputs 1 to all are the prefix; its last one predicts the first target.
            split = start + int(rng.integers(1, length + 1))
            prefix[start:split] = 1
            features["weights"][start : split - 1] = 0
            start += length
        return {**features, "prefix": prefix}


@dataclasses.dataclass(frozen=True)
class PrefixLM(SourceToTarget):
    """Predicts the rest of a text from its beginning."""

    config: PrefixLMConfig
    name: ClassVar[str] = "prefix_lm"
    architectures: ClassVar[tuple[str, ...]] = ("decoder", "encoder_decoder")

    @classmethod
    def target_places(cls, config: PrefixLMConfig, length: int) -> int:
        """Returns three quarters of `length`: up to so much of a text may be its rest."""
        del config
        return length * 3 // 4

    def prompt_format(self) -> PromptFormat:
        """Returns a text's beginning: of a decoder all of it is seen by all of its tokens, and nothing ends it."""
        if not self.family.paired:
            return dataclasses.replace(Objective.prompt_format(self), bidirectional=True)
        return super().prompt_format()

    def longest_rest(self, lengths: np.ndarray) -> np.ndarray:
        """Returns the most tokens of a text of `lengths` tokens that an encoder-decoder's decoder predicts.

        It is the decoder's share of the two rows, so that both fill up alike whatever is drawn; where the decoder's row
        is the longer one, a text may be split anywhere.
        """
        share = lengths * self.target_length // self.length
        return np.clip(share, 1, np.maximum(lengths - 1, 1))

    def cost(self, lengths: np.ndarray) -> np.ndarray:
        """Returns the places of an encoder-decoder's row that texts of `lengths` tokens take, split anywhere."""
        return self.places(np.maximum(lengths, 2), self.longest_rest(lengths) + 1)

    def rows(self, store: Store, seed: int) -> Rows:
        """Returns packed pieces of documents."""
        if self.family.paired:
            return SplitPieces(store, self.plan(store, self.cost, seed), self)
        return PrefixWindows.of(self, store, seed)
