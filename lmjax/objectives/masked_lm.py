"""Masked language modelling (Devlin et al. 2019, arXiv:1810.04805, section 3.1), with new masks in each epoch.

The dynamic masking is RoBERTa's (Liu et al. 2019, arXiv:1907.11692, section 4.1); whole-word masking is that of the
later BERT releases. All rows have the same number of predictions, which follows from the row's length and the mask
rate, so the vocabulary projection is computed at the masked positions only.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from lmjax.data.packing import pack
from lmjax.data.store import Store
from lmjax.objectives.base import Features, ObjectiveConfig, Rows
from lmjax.objectives.rows import PackedPieces, pad, side
from lmjax.objectives.samples import Sample, beginning, framed
from lmjax.objectives.token_prediction import TokenPrediction


class MaskedLMConfig(ObjectiveConfig):
    """Settings of the masked-LM objective."""

    mask_rate: float = Field(0.15, gt=0, lt=1, description="share of a row's text tokens that are predicted")
    replace_by_mask: float = Field(0.8, ge=0, le=1, description="share of those that become [MASK]")
    replace_by_random: float = Field(0.1, ge=0, le=1, description="share that become a random token; the rest stay")
    whole_word: bool = Field(False, description="mask all pieces of a word or none")

    @model_validator(mode="after")
    def _shares(self) -> "MaskedLMConfig":
        if self.replace_by_mask + self.replace_by_random > 1 + 1e-9:
            raise ValueError(
                f"replace_by_mask={self.replace_by_mask} and replace_by_random={self.replace_by_random} add up to "
                "more than 1; lower one of them"
            )
        return self


@dataclasses.dataclass(frozen=True)
class FullSentences(PackedPieces, Rows):
    """Packed pieces of documents, each between [CLS] and [SEP] (Liu et al. 2019, section 4.2)."""

    length: int
    pad_id: int
    cls_id: int
    sep_id: int

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns `tokens`, `positions` and `segment_ids`, each int32 `[length]`."""
        del rng
        pieces = [np.concatenate([[self.cls_id], p, [self.sep_id]]) for p in self.tokens(index)]
        return side(pieces, self.length, self.pad_id)


class MaskedText(TokenPrediction):
    """An objective of encoders that masks text tokens of packed texts and predicts them."""

    architectures: ClassVar[tuple[str, ...]] = ("encoder",)
    heads: ClassVar[tuple[str, ...]] = ("masked_lm",)
    predicts_at: ClassVar[str | None] = "prediction_positions"

    def rows(self, store: Store, seed: int) -> FullSentences:
        """Returns packed pieces of documents; [CLS] and [SEP] count in the length of each piece."""
        plan = pack(store.lengths, max_piece=self.length - 2, cost=lambda n: n + 2, capacity=self.length, seed=seed)
        t = self.tokenizer
        return FullSentences(store, plan, self.length, t.pad_id, t.cls_id, t.sep_id)

    def maskable(self, features: Features) -> np.ndarray:
        """Returns the positions of a row's text tokens, int64, in ascending order."""
        return np.flatnonzero(self.tokenizer.is_text[features["tokens"]] & (features["segment_ids"] > 0))


@dataclasses.dataclass(frozen=True)
class MaskedLM(MaskedText):
    """Predicts the original tokens at masked positions."""

    config: MaskedLMConfig
    name: ClassVar[str] = "mlm"
    usual_for: ClassVar[tuple[str, ...]] = ("encoder",)

    @property
    def predictions(self) -> int:
        """Returns the number of predictions in a row, filled or not."""
        return max(1, math.ceil(self.length * self.config.mask_rate))

    def transform(self, features: Features, rng: np.random.Generator) -> Features:
        """Returns the features with masked `tokens`, and `prediction_positions`, `targets`, `weights` `[predictions]`.

        Predictions that a short row does not need have weight 0 and position 0.
        """
        tokens, maskable = features["tokens"], self.maskable(features)
        # Random rounding, so that the expected share of masked tokens is exact on short rows too.
        wanted = min(int(len(maskable) * self.config.mask_rate + rng.random()), self.predictions)
        if self.config.whole_word:
            chosen = self._whole_words(tokens, maskable, wanted, rng)
        else:
            chosen = np.sort(rng.permutation(maskable)[:wanted])
        masked = tokens.copy()
        draw = rng.random(len(chosen))
        by_mask = draw < self.config.replace_by_mask
        by_random = ~by_mask & (draw < self.config.replace_by_mask + self.config.replace_by_random)
        masked[chosen[by_mask]] = self.tokenizer.mask_id
        masked[chosen[by_random]] = rng.choice(self.tokenizer.text_ids, by_random.sum())
        return {
            **features,
            "tokens": masked,
            "prediction_positions": pad(chosen, self.predictions),
            "targets": pad(tokens[chosen], self.predictions, self.tokenizer.pad_id),
            "weights": pad(np.ones(len(chosen)), self.predictions, dtype=np.float32),
        }

    def sample(self, store: Store, room: int) -> Sample:
        """Returns a text in which every seventh token is masked, for the model to fill in."""
        tokens, decode = beginning(store, room), self.tokenizer.decode
        masked = np.arange(3, len(tokens), 7)
        row = tokens.copy()
        row[masked] = self.tokenizer.mask_id
        shown = ["[MASK]" if i in masked else decode([t]) for i, t in enumerate(tokens.tolist())]
        holes = [decode([t]) for t in tokens[masked].tolist()]

        def answer(ids: Sequence[int]) -> str:
            filled = (f"{hole!r} -> {decode([i])!r}" for hole, i in zip(holes, ids, strict=True))
            return f"masked -> filled in: {', '.join(filled)}"

        return Sample(framed("a held-out text:", "".join(shown)), tuple(row.tolist()), answer)

    def _whole_words(
        self, tokens: np.ndarray, maskable: np.ndarray, wanted: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns the positions of randomly drawn whole words, at most `wanted` positions.

        As in BERT's release, a word that is too long for the remaining number is skipped, so short words are drawn more
        often than long ones.
        """
        # A word begins at a token that starts one, and after each special token.
        starts = self.tokenizer.word_start[tokens[maskable]] | (np.diff(maskable, prepend=-2) > 1)
        words = np.split(maskable, np.flatnonzero(starts)[1:]) if len(maskable) else []
        chosen: list[np.ndarray] = []
        count = 0
        for i in rng.permutation(len(words)):
            if count + len(words[i]) <= wanted:
                chosen.append(words[i])
                count += len(words[i])
            if count == wanted:
                break
        return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)
