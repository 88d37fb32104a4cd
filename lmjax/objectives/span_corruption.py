"""Span corruption (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4): the targets are the spans that were cut out.

As in the T5 release, the number of cut tokens and of spans depends only on the number of tokens of a text. The length
of a corrupted piece is therefore known before spans are drawn, and pieces can be packed.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
from pydantic import Field

from lmjax.data.store import Store
from lmjax.data.vocabulary import Vocabulary
from lmjax.objectives.base import Features, ObjectiveConfig, Rows
from lmjax.objectives.rows import PackedPieces
from lmjax.objectives.samples import Sample, beginning, framed
from lmjax.objectives.token_prediction import SourceToTarget
from lmjax.streams import random_stream


class SpanCorruptionConfig(ObjectiveConfig):
    """Settings of the span-corruption objective."""

    noise_density: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are cut out")
    mean_span_length: float = Field(3.0, ge=1, description="mean number of tokens of a cut-out span")


class Spans(Protocol):
    """Any object with these two settings of `SpanCorruptionConfig`."""

    noise_density: float
    mean_span_length: float


def noise_tokens(lengths: np.ndarray, density: float) -> np.ndarray:
    """Returns the number of tokens cut out of texts of `lengths` (at least 1) tokens: 1 to length - 1, or 1 of 1."""
    return np.clip(np.rint(lengths * density), 1, np.maximum(lengths - 1, 1)).astype(np.int64)


def noise_counts(lengths: np.ndarray, config: Spans) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of cut-out tokens and of spans for texts of `lengths` (at least 1) tokens."""
    noise = noise_tokens(lengths, config.noise_density)
    spans = np.maximum(np.rint(noise / config.mean_span_length), 1).astype(np.int64)
    return noise, np.minimum(spans, np.maximum(lengths - noise, 1))


def random_partition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `[parts]` positive lengths that add up to `total`, drawn uniformly from all such partitions."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def random_gaps(kept: int, spans: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `[spans + 1]` lengths that add up to `kept`: the tokens before, between and after the spans."""
    # The first and the last length may be 0, and a partition has positive parts: so 1 is added and subtracted again.
    gaps = random_partition(kept + 2, spans + 1, rng)
    gaps[[0, -1]] -= 1
    return gaps


def corrupt(
    tokens: np.ndarray, sentinels: np.ndarray, eos_id: int, config: Spans, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the source, in which sentinels replace the spans, and the target: each sentinel followed by its span.

    Both end in EOS. Spans are never adjacent, and can be anywhere in the text. In the T5 release the last span is
    always at the end of a text of about 500 tokens. Texts here can be shorter, and one of less than 30 tokens has a
    single span, which would then be its end in each epoch.
    """
    noise, spans = (int(n[0]) for n in noise_counts(np.array([len(tokens)]), config))
    assert spans <= len(sentinels), "more spans than sentinels"
    kept_lengths = random_gaps(len(tokens) - noise, spans, rng)
    cut_lengths = random_partition(noise, spans, rng)
    source, target, position = [], [], 0
    for sentinel, keep, cut in zip(sentinels, kept_lengths, cut_lengths, strict=False):
        source += [tokens[position : position + keep], [sentinel]]
        position += keep
        target += [[sentinel], tokens[position : position + cut]]
        position += cut
    return np.concatenate([*source, tokens[position:], [eos_id]]), np.concatenate([*target, [eos_id]])


@dataclasses.dataclass(frozen=True)
class CorruptedPieces(PackedPieces, Rows):
    """Packed pieces of documents, each corrupted separately."""

    objective: "SpanCorruption"

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features that `rows.source_target` makes."""
        o, t = self.objective, self.objective.tokenizer
        return o.row([corrupt(piece, t.sentinel_ids, t.eos_id, o.config, rng) for piece in self.tokens(index)])


@dataclasses.dataclass(frozen=True)
class SpanCorruption(SourceToTarget):
    """Predicts the spans that were cut out of a text."""

    config: SpanCorruptionConfig
    name: ClassVar[str] = "span_corruption"
    usual_for: ClassVar[tuple[str, ...]] = ("encoder_decoder",)

    @classmethod
    def default_target_length(cls, config: SpanCorruptionConfig, length: int) -> int:
        """Returns the length of the target of the longest text whose source fits into `length` tokens.

        `compute_input_and_target_lengths` of the T5 release gives the same: 114 for 512 with the default settings.
        """
        kept = 1 - config.noise_density + config.noise_density / config.mean_span_length
        lengths = np.arange(1, int(length / kept) + 8)
        noise, spans = noise_counts(lengths, config)
        longest = int(np.flatnonzero(lengths - noise + spans + 1 <= length).max(initial=0))
        return int(noise[longest] + spans[longest]) + 1

    def never(self) -> tuple[int, ...]:
        """Returns the special ids that it never predicts: all except EOS and the sentinels."""
        return tuple(i for i in super().never() if i not in self.tokenizer.sentinels)

    def sample(self, store: Store, room: int) -> Sample:
        """Returns a text with spans cut out, for the model to restore."""
        t, rng = self.tokenizer, random_stream(0, "sample with spans")
        source, target = corrupt(beginning(store, room), t.sentinel_ids, t.eos_id, self.config, rng)
        order = {token: i for i, token in enumerate(t.sentinel_ids.tolist())}
        shown = [f"<{order[i]}>" if i in order else t.decode([i]) for i in source[:-1].tolist()]
        true = _spans(target.tolist(), order, t)

        def answer(ids: Sequence[int]) -> str:
            guessed = _spans(ids, order, t)
            restored = (f"<{i}> {span!r} -> {guessed.get(i)!r}" for i, span in true.items())
            return f"cut out -> restored: {', '.join(restored)}"

        above = framed("a held-out text:", "".join(shown))
        return Sample(above, tuple(source[:-1].tolist()), answer, count=2 * len(target))

    def cost(self, lengths: np.ndarray) -> np.ndarray:
        """Returns the number of positions in a row that pieces of `lengths` tokens take after corruption."""
        noise, spans = noise_counts(lengths, self.config)
        places = self.row_positions(lengths - noise + spans + 1, noise + spans + 1)
        # A piece with more spans than sentinels must not be used, so it costs more than a row has.
        return np.where(spans > len(self.tokenizer.sentinel_ids), self.length + 1, places)

    def rows(self, store: Store, seed: int) -> CorruptedPieces:
        """Returns packed pieces, which are as long as a row allows after corruption."""
        return CorruptedPieces(store, self.plan(store, self.cost, seed), self)


def _spans(ids: Sequence[int], order: dict[int, int], tokenizer: Vocabulary) -> dict[int, str]:
    """Returns the text after each sentinel, by the sentinel's number in `order`."""
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in ids:
        if token in order:
            current = spans.setdefault(order[token], [])
        elif token != tokenizer.eos_id:
            current.append(token)
    return {number: tokenizer.decode(span) for number, span in spans.items()}
