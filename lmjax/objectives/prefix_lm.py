"""Prefix language modelling: predicts the rest of a text from its beginning, which has bidirectional attention.

Raffel et al. 2020, arXiv:1910.10683, section 3.2.1. In an encoder-decoder the encoder reads the beginning and the
decoder predicts the rest, as in T5's adaptation to language modelling (Lester et al. 2021, arXiv:2104.08691, section
3.1). The position at which a text is split is random, and different in each epoch.
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
    """Packed pieces of documents for an encoder-decoder, each split into a source and a target."""

    objective: "PrefixLM"

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features that `rows.source_target` makes."""
        o, eos = self.objective, [self.objective.tokenizer.eos_id]
        pairs = []
        for piece in self.tokens(index):
            split = len(piece) - int(rng.integers(1, o.longest_rest(np.array(len(piece))) + 1))
            pairs.append((np.concatenate([piece[:split], eos]), np.concatenate([piece[split:], eos])))
        return o.row(pairs)


@dataclasses.dataclass(frozen=True)
class PrefixWindows(Windows):
    """The next-token objective's windows for a decoder, each with a prefix that is read but not predicted."""

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features of `Windows`, with weight 0 in the prefix, and `prefix` `[length]`, int32 0 or 1."""
        features = super().features(index, rng)
        prefix = np.zeros(self.length, np.int32)
        start = 0
        for _, _, length in self.bounds(index):
            # The prefix has between 1 and all of the window's inputs; its last input predicts the first target.
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
    def default_target_length(cls, config: PrefixLMConfig, length: int) -> int:
        """Returns three quarters of `length`, so the rest is at most about three quarters of a text."""
        del config
        return length * 3 // 4

    def prompt_format(self) -> PromptFormat:
        """Returns the format of a text's beginning; in a decoder it has bidirectional attention and no end token."""
        if not self.family.paired:
            return dataclasses.replace(Objective.prompt_format(self), bidirectional=True)
        return super().prompt_format()

    def longest_rest(self, lengths: np.ndarray) -> np.ndarray:
        """Returns, for texts of `lengths` tokens, the most tokens that an encoder-decoder's decoder predicts.

        The share of a text is `target_length / length`, so that both rows fill up equally for any random split. If the
        decoder's row is the longer one, a text may be split anywhere.
        """
        share = lengths * self.target_length // self.length
        return np.clip(share, 1, np.maximum(lengths - 1, 1))

    def cost(self, lengths: np.ndarray) -> np.ndarray:
        """Returns the number of positions in an encoder-decoder's row that texts of `lengths` tokens take at most."""
        return self.row_positions(np.maximum(lengths, 2), self.longest_rest(lengths) + 1)

    def rows(self, store: Store, seed: int) -> Rows:
        """Returns packed pieces of documents."""
        if self.family.paired:
            return SplitPieces(store, self.plan(store, self.cost, seed), self)
        return PrefixWindows.of(self, store, seed)
