"""A mixture of denoisers (UL2: Tay et al. 2023, arXiv:2205.05131, section 3.1 and table 1).

By default seven denoisers corrupt texts in equal shares, in three modes: R cuts out the spans of T5 or longer ones, S
cuts off the end of the text (a prefix LM), X cuts out long spans or half of the text. A mode token before the source
names the mode.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from lmjax.data.store import Store
from lmjax.objectives.base import Features, ObjectiveConfig, Rows
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.rows import PackedPieces
from lmjax.objectives.span_corruption import corrupt, noise_counts, noise_tokens
from lmjax.objectives.token_prediction import SourceToTarget
from lmjax.streams import subseed

MODES = ("R", "S", "X")


class DenoiseConfig(ObjectiveConfig):
    """Settings of the mixture of denoisers; the defaults are the seven of UL2's table 1."""

    modes: tuple[Literal["R", "S", "X"], ...] = Field(
        ("R", "R", "S", "X", "X", "X", "X"), min_length=1, description="the mode token of each denoiser"
    )
    mean_span_lengths: tuple[float, ...] = Field(
        (3, 8, 0, 3, 8, 64, 64), description="tokens of a span, for each denoiser; 0: one span, the end of the text"
    )
    noise_densities: tuple[float, ...] = Field(
        (0.15, 0.15, 0.25, 0.5, 0.5, 0.15, 0.5), description="share of the tokens that each denoiser cuts out"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "DenoiseConfig":
        counts = tuple(map(len, (self.modes, self.mean_span_lengths, self.noise_densities)))
        if len(set(counts)) > 1:
            raise ValueError(
                f"modes, mean_span_lengths and noise_densities have {counts[0]}, {counts[1]} and {counts[2]} entries; "
                "give one for each denoiser"
            )
        for mean, density in zip(self.mean_span_lengths, self.noise_densities, strict=True):
            if not (mean == 0 or mean >= 1) or not 0 < density < 1:
                raise ValueError(
                    f"mean_span_lengths has {mean} and noise_densities {density}: a span is 0 or at least 1 token "
                    "long, and a density lies between 0 and 1"
                )
        return self


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """One way to corrupt a text.

    Attributes:
        mode: the id of its mode token.
        noise_density: share of the tokens that are cut out.
        mean_span_length: mean number of tokens in a span; 0 for one span at the end of the text.
        sentinels: int32 `[sentinels]`, the ids that can replace spans.
        eos_id: ends the source and the target.
    """

    mode: int
    noise_density: float
    mean_span_length: float
    sentinels: np.ndarray
    eos_id: int

    def counts(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the number of cut-out tokens and of sentinels for texts of `lengths` (at least 1) tokens."""
        if self.mean_span_length:
            return noise_counts(lengths, self)
        noise = noise_tokens(lengths, self.noise_density)
        return noise, np.zeros_like(noise)

    def apply(self, tokens: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source, which begins with the mode token, and the target."""
        if self.mean_span_length:
            source, target = corrupt(tokens, self.sentinels, self.eos_id, self, rng)
            return np.concatenate([[self.mode], source]), target
        split = len(tokens) - int(self.counts(np.array([len(tokens)]))[0][0])
        source = np.concatenate([[self.mode], tokens[:split], [self.eos_id]])
        return source, np.concatenate([tokens[split:], [self.eos_id]])


@dataclasses.dataclass(frozen=True)
class DenoisedPieces(PackedPieces, Rows):
    """Packed pieces of documents, each corrupted separately by the same denoiser."""

    objective: "Denoise"
    denoiser: Denoiser

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features that `rows.source_target` makes; for a decoder also `prefix`, 1 for BOS and source."""
        o = self.objective
        pairs = [self.denoiser.apply(piece, rng) for piece in self.tokens(index)]
        features = o.row(pairs)
        if not o.family.paired:
            # The prefix is BOS and the source; the last token of the source predicts the first of the target.
            features["prefix"] = np.zeros(o.length, np.int32)
            start = 0
            for source, target in pairs:
                features["prefix"][start : start + len(source) + 1] = 1
                start += len(source) + len(target)
        return features


@dataclasses.dataclass(frozen=True)
class Denoise(SourceToTarget):
    """Predicts the tokens that one of several denoisers cut out of a text."""

    config: DenoiseConfig
    name: ClassVar[str] = "denoise"

    @property
    def modes(self) -> dict[str, int]:
        """Returns the ids of the mode tokens, which are the last three sentinels."""
        return dict(zip(MODES, self.tokenizer.sentinel_ids[-len(MODES) :].tolist(), strict=True))

    def prompt_format(self) -> PromptFormat:
        """Returns the format of a source after a mode token: S, which continues a text, or else the first one trained.

        In a decoder the source has bidirectional attention, as in training.
        """
        plain, mode = super().prompt_format(), "S" if "S" in self.config.modes else self.config.modes[0]
        before = (*plain.before, self.modes[mode])
        return dataclasses.replace(plain, before=before, bidirectional=not self.family.paired)

    def never(self) -> tuple[int, ...]:
        """Returns the special ids that it never predicts: all except EOS and the sentinels that replace spans."""
        spans = self.tokenizer.sentinels - set(self.modes.values())
        return tuple(i for i in super().never() if i not in spans)

    @property
    def denoisers(self) -> tuple[Denoiser, ...]:
        """Returns the denoisers."""
        c, t, modes = self.config, self.tokenizer, self.modes
        return tuple(
            Denoiser(modes[mode], density, mean, t.sentinel_ids[: -len(MODES)], t.eos_id)
            for mode, mean, density in zip(c.modes, c.mean_span_lengths, c.noise_densities, strict=True)
        )

    def cost(self, lengths: np.ndarray, denoiser: Denoiser) -> np.ndarray:
        """Returns the number of positions in a row that pieces of `lengths` tokens take after corruption."""
        noise, spans = denoiser.counts(lengths)
        places = self.row_positions(lengths - noise + spans + 2, noise + spans + 1)
        # A piece with more spans than sentinels must not be used, so it costs more than a row has.
        return np.where(spans > len(denoiser.sentinels), self.length + 1, places)

    def rows(self, store: Store, seed: int) -> DenoisedPieces:
        """Returns the rows of the first denoiser."""
        return self.sources(store, seed)[0]

    def sources(self, store: Store, seed: int) -> tuple[DenoisedPieces, ...]:
        """Returns the rows of each denoiser, whose pieces are as long as a row allows after corruption."""
        return tuple(
            DenoisedPieces(
                store, self.plan(store, lambda n, d=d: self.cost(n, d), subseed(seed, "denoiser", number)), self, d
            )
            for number, d in enumerate(self.denoisers)
        )
