"""What changes scores before a token is chosen: penalties and bans, for sampling and for beam search alike.

Each does what the logits processor of that name in transformers 5 does, in the same order, so that the same weights
write the same texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from lmjax.inference.generate.strategy import Moment
from lmjax.schema import Schema


class ProcessorConfig(Schema):
    """Penalties and bans; the defaults change nothing."""

    repetition_penalty: float | None = Field(
        None,
        ge=1e-6,
        le=1e6,
        description="Divides positive and multiplies negative scores of ids that the prompt or the text has; above 1"
        " they get less likely (Keskar et al. 2019, arXiv:1909.05858, section 4.1).",
    )
    no_repeat_ngram: int = Field(
        0,
        ge=0,
        description="No n-gram of this length occurs twice, the prompt's included; 0: off (Paulus et al. 2017,"
        " arXiv:1705.04304, section 2.5).",
    )
    min_new_tokens: int = Field(0, ge=0, description="Tokens written before one may end the text.")
    banned: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="Ids that are never written.")


@flax.struct.dataclass
class Processors:
    """The numbers of a config as data, so that another penalty compiles nothing anew; None: off, and not compiled.

    Attributes:
        repetition_penalty: float32 scalar.
        min_new_tokens: int32 scalar.
        banned: int32 `[banned]`.
        no_repeat_ngram: n; 0: off. A program is compiled for each.
    """

    repetition_penalty: jax.Array | None = None
    min_new_tokens: jax.Array | None = None
    banned: jax.Array | None = None
    no_repeat_ngram: int = flax.struct.field(pytree_node=False, default=0)

    @classmethod
    def of(cls, config: ProcessorConfig, banned: Sequence[int] = ()) -> Self:
        """Returns the numbers of a config, on the host.

        Args:
            config: penalties and bans.
            banned: further ids that are never written, as those that stand for no text.
        """
        penalty, ids = config.repetition_penalty, sorted({*config.banned, *banned})
        return cls(
            repetition_penalty=None if penalty is None or penalty == 1 else np.float32(penalty),
            min_new_tokens=np.int32(config.min_new_tokens) if config.min_new_tokens else None,
            banned=np.asarray(ids, np.int32) if ids else None,
            no_repeat_ngram=config.no_repeat_ngram,
        )


def apply(scores: jax.Array, moment: Moment, processors: Processors) -> jax.Array:
    """Returns float32 `[rows, vocab]` scores after penalties; minus infinity where an id is banned.

    Args:
        scores: float32 `[rows, vocab]`, logits or log-probabilities.
        moment: what has been written in each row; its `logits` are not read.
        processors: the numbers.
    """
    if processors.repetition_penalty is not None:
        scores = penalise(scores, moment, processors.repetition_penalty)
    if processors.no_repeat_ngram:
        scores = _without(scores, repeats(moment, processors.no_repeat_ngram, scores.shape[-1]))
    if processors.banned is not None:
        scores = _without(scores, processors.banned[None])
    if processors.min_new_tokens is not None:
        # -1 is no stop id, and jax would take it for the last one.
        early = (moment.count < processors.min_new_tokens)[:, None] & (moment.stop >= 0)[None]
        scores = _without(scores, jnp.where(early, moment.stop[None], scores.shape[-1]))
    return scores


def penalise(scores: jax.Array, moment: Moment, penalty: jax.Array) -> jax.Array:
    """Returns scores in which ids that a row holds are less likely, however often it holds them."""
    rows, vocab = scores.shape
    ids = jnp.where(moment.written, moment.tokens, vocab)
    found = jnp.take_along_axis(scores, ids, axis=1, mode="clip")
    found = jnp.where(found < 0, found * penalty, found / penalty)
    return scores.at[jnp.arange(rows)[:, None], ids].set(found, mode="drop")


def repeats(moment: Moment, n: int, vocab: int) -> jax.Array:
    """Returns int32 `[rows, room - n + 1]`: ids that would complete an n-gram which the row holds; `vocab`: none."""
    tokens, written = moment.tokens, moment.written
    windows = tokens.shape[1] - n + 1
    if windows < 1:
        return jnp.full((len(tokens), 1), vocab, jnp.int32)
    end = jnp.max(jnp.where(written, 1 + jnp.arange(tokens.shape[1])[None], 0), axis=1, keepdims=True)
    last = jnp.take_along_axis(tokens, end - (n - 1) + jnp.arange(n - 1)[None], axis=1, mode="clip")
    # What is written has no gaps: a window holds written tokens only if its ends are.
    complete = written[:, :windows] & written[:, n - 1 :]
    for i in range(n - 1):
        complete &= tokens[:, i : i + windows] == last[:, i : i + 1]
    return jnp.where(complete, tokens[:, n - 1 :], vocab)


def _without(scores: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns scores with minus infinity at `ids` `[rows or 1, n]`; those beyond the vocabulary are none."""
    return scores.at[jnp.arange(len(scores))[:, None], ids].set(-jnp.inf, mode="drop")
