"""A task: the objectives of a run together, as one source of features and one set of loss sums."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from lmjax.data.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.errors import FlagError
from lmjax.objectives.base import Batch, Features, LossSum, Objective, Outputs, Rows
from lmjax.objectives.masked_lm import MaskedLM, MaskedLMConfig
from lmjax.objectives.next_sentence import NextSentence, NextSentenceConfig
from lmjax.objectives.next_token import NextToken, NextTokenConfig
from lmjax.objectives.seq2seq import Seq2Seq, Seq2SeqConfig
from lmjax.objectives.span_corruption import SpanCorruption, SpanCorruptionConfig
from lmjax.schema import Schema

OBJECTIVES: dict[str, type[Objective]] = {
    o.name: o for o in (NextToken, MaskedLM, NextSentence, SpanCorruption, Seq2Seq)
}

# Objectives that read the same rows; the last one of a combination lays them out.
COMBINATIONS = (("mlm", "nsp"),)


class TaskConfig(Schema):
    """What is trained on, and the settings of every objective."""

    objective: tuple[str, ...] = Field(("next_token",), description="names joined by commas: mlm,nsp is BERT's pair")
    length: int = Field(256, ge=8, description="tokens in a row; in an encoder-decoder, of the encoder's")
    target_length: int = Field(64, ge=8, description="tokens in a row of an encoder-decoder's decoder")
    vocab_chunk: int = Field(0, ge=0, description="positions of a row whose logits exist at the same time; 0: all")
    next_token: NextTokenConfig = NextTokenConfig()
    mlm: MaskedLMConfig = MaskedLMConfig()
    nsp: NextSentenceConfig = NextSentenceConfig()
    span_corruption: SpanCorruptionConfig = SpanCorruptionConfig()
    seq2seq: Seq2SeqConfig = Seq2SeqConfig()

    def loss_weights(self) -> dict[str, float]:
        """Returns the weight of every chosen objective in the loss."""
        return {name: getattr(self, name).loss_weight for name in self.objective}


def objective_types(names: tuple[str, ...]) -> tuple[type[Objective], ...]:
    """Returns the objectives in the order in which their features are made; raises FlagError for a bad combination."""
    for name in names:
        if name not in OBJECTIVES:
            raise FlagError(f"--objective={','.join(names)}: no objective {name!r}; choose of {', '.join(OBJECTIVES)}")
    if len(names) != 1 and tuple(sorted(names)) not in COMBINATIONS:
        known = " ".join(",".join(c) for c in COMBINATIONS)
        raise FlagError(f"--objective={','.join(names)}: these do not share their rows; together go: {known}")
    return tuple(OBJECTIVES[name] for name in sorted(names))


def architectures(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the families that can train these objectives, the usual one first."""
    types = objective_types(names)
    return tuple(a for a in types[0].architectures if all(a in t.architectures for t in types))


@dataclasses.dataclass(frozen=True)
class Examples:
    """Row `index` of a store as the task's features; what the pipeline calls. Pickles."""

    task: Task
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features of one row."""
        features = self.rows.features(index, rng)
        for objective in self.task.objectives:
            features = objective.transform(features, rng)
        return features


@dataclasses.dataclass(frozen=True)
class Task:
    """The objectives of a run."""

    objectives: tuple[Objective, ...]

    @classmethod
    def build(cls, config: TaskConfig, tokenizer: Tokenizer, architecture: str) -> Task:
        """Returns the task; raises FlagError if the family cannot train it."""
        types = objective_types(config.objective)
        if architecture not in architectures(config.objective):
            names = ",".join(config.objective)
            raise FlagError(
                f"--architecture={architecture} cannot train --objective={names}; "
                f"it needs {' or '.join(architectures(config.objective))}"
            )
        lengths = (config.length, config.target_length, config.vocab_chunk)
        return cls(tuple(t(getattr(config, t.name), tokenizer, architecture, *lengths) for t in types))

    @property
    def heads(self) -> tuple[str, ...]:
        """Returns the heads that the model needs beside its vocabulary."""
        return tuple(head for o in self.objectives for head in o.heads)

    def examples(self, store: Store, seed: int) -> Examples:
        """Returns the task's view of a store."""
        return Examples(self, self.objectives[-1].rows(store, seed))

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns, by objective, the weight of the whole batch; at least 1, so that an empty batch has loss 0."""
        return {o.name: jnp.maximum(o.weight(batch), 1.0) for o in self.objectives}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, LossSum]:
        """Returns the sums of every objective."""
        return {o.name: o.loss(outputs, batch) for o in self.objectives}
