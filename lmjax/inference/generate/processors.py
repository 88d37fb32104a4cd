"""Penalties and bans that change the scores before a token is chosen, in sampling and in beam search.

Each one equals the logits processor of that name in transformers 5, and they run in the same order, so that the same
weights generate the same texts.
"""

from __future__ import annotations

from typing import Annotated, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from lmjax.inference.generate.strategy import ChoiceInput
from lmjax.inference.loaded import PromptFormat
from lmjax.schema import Schema


class ProcessorConfig(Schema):
    """Penalties and bans; the defaults change nothing."""

    repetition_penalty: float | None = Field(
        None,
        ge=1e-6,
        le=1e6,
        description="Divides positive and multiplies negative scores of ids that occur in the prompt or the text; above"
        " 1 they become less likely (Keskar et al. 2019, arXiv:1909.05858, section 4.1).",
    )
    no_repeat_ngram: int = Field(
        0,
        ge=0,
        description="No n-gram of this length occurs twice, those of the prompt included; 0: off (Paulus et al. 2017,"
        " arXiv:1705.04304, section 2.5).",
    )
    min_new_tokens: int = Field(0, ge=0, description="The least tokens before the text may end.")
    min_length: int = Field(0, ge=0, description="The same, counting the tokens that the decoder begins with too.")
    renormalize: bool = Field(
        False, description="Normalise beam scores to log-probabilities again after penalties and bans, as for Marian."
    )
    banned: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="Ids that are never generated.")


@flax.struct.dataclass
class Processors:
    """The values of a ProcessorConfig as traced arrays, so that a new value does not recompile; None: off.

    Attributes:
        repetition_penalty: float32 scalar.
        min_new_tokens: int32 scalar.
        min_length: int32 scalar.
        banned: int32 `[banned]`: ids that are never generated.
        words: int32 `[words, longest]`, right-aligned and padded with -1: sequences of ids that are never generated.
        banned_first: int32 `[banned]`: ids that must not be the first token after the `forced` ones.
        forced: int32 scalar: the number of forced tokens.
        last: int32 `[ids]`: the only ids allowed for the last token before the limit; each gets score 0.
        no_repeat_ngram: n; 0: off. Static: each n compiles a program.
        renormalize: whether the changed scores are normalised again to log-probabilities.
    """

    repetition_penalty: jax.Array | None = None
    min_new_tokens: jax.Array | None = None
    min_length: jax.Array | None = None
    banned: jax.Array | None = None
    words: jax.Array | None = None
    banned_first: jax.Array | None = None
    forced: jax.Array | None = None
    last: jax.Array | None = None
    no_repeat_ngram: int = flax.struct.field(pytree_node=False, default=0)
    renormalize: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def of(cls, config: ProcessorConfig, form: PromptFormat | None = None) -> Self:
        """Returns the processors of a config, as NumPy arrays.

        Args:
            config: penalties and bans.
            form: the ids that the model itself bans or forces; None: there are none.
        """
        form = PromptFormat() if form is None else form
        penalty, ids = config.repetition_penalty, sorted({*config.banned, *form.never})
        longest = max(map(len, form.never_words), default=0)
        words = [(-1,) * (longest - len(word)) + tuple(word) for word in form.never_words]
        return cls(
            repetition_penalty=None if penalty is None or penalty == 1 else np.float32(penalty),
            min_new_tokens=np.int32(config.min_new_tokens) if config.min_new_tokens else None,
            min_length=np.int32(config.min_length) if config.min_length else None,
            banned=np.asarray(ids, np.int32) if ids else None,
            words=np.asarray(words, np.int32) if words else None,
            banned_first=np.asarray(form.never_first, np.int32) if form.never_first else None,
            forced=np.int32(len(form.forced)) if form.never_first else None,
            last=np.asarray(form.last, np.int32) if form.last else None,
            no_repeat_ngram=config.no_repeat_ngram,
            renormalize=config.renormalize,
        )

    @property
    def any(self) -> bool:
        """Returns whether any processor is on."""
        return bool(jax.tree.leaves(self)) or self.no_repeat_ngram > 0 or self.renormalize


def apply(scores: jax.Array, inputs: ChoiceInput, processors: Processors) -> jax.Array:
    """Returns float32 `[rows, vocab]` scores after penalties; minus infinity where an id is banned.

    Args:
        scores: float32 `[rows, vocab]`, logits or log-probabilities.
        inputs: the tokens of each row so far; its `logits` are not read.
        processors: penalties and bans.
    """
    if processors.repetition_penalty is not None:
        scores = penalise(scores, inputs, processors.repetition_penalty)
    if processors.no_repeat_ngram:
        scores = _without(scores, repeats(inputs, processors.no_repeat_ngram, scores.shape[-1]))
    if processors.banned is not None:
        scores = _without(scores, processors.banned[None])
    if processors.words is not None:
        scores = _without(scores, completions(inputs, processors.words, scores.shape[-1]))
    if processors.min_new_tokens is not None:
        scores = unending(scores, inputs.stop[None], inputs.count < processors.min_new_tokens)
    if processors.min_length is not None:
        scores = unending(scores, inputs.stop[None], jnp.sum(inputs.written, axis=1) < processors.min_length)
    if processors.banned_first is not None:
        first = (inputs.count == processors.forced)[:, None]
        scores = _without(scores, jnp.where(first, processors.banned_first[None], scores.shape[-1]))
    if processors.last is not None:
        only = jnp.full_like(scores, -jnp.inf).at[:, processors.last].set(0)
        scores = jnp.where((inputs.count + 1 >= inputs.limit)[:, None], only, scores)
    if processors.renormalize:
        # Scores of minus infinity stay: in a row where every id is banned, `scores - total` would be NaN.
        total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        scores = jnp.where(jnp.isneginf(scores), scores, scores - total)
    return scores


def unending(scores: jax.Array, stop: jax.Array, early: jax.Array) -> jax.Array:
    """Returns scores with stop ids banned in some rows.

    Args:
        scores: float32 `[rows, vocab]`.
        stop: int32 `[rows or 1, stops]`; -1: none.
        early: bool `[rows]`.
    """
    # -1 means no stop id; as an index it would select the last id of the vocabulary.
    return _without(scores, jnp.where(early[:, None] & (stop >= 0), stop, scores.shape[-1]))


def completions(inputs: ChoiceInput, words: jax.Array, vocab: int) -> jax.Array:
    """Returns int32 `[rows, words]`: the last id of each word whose other ids are the last of the row; else `vocab`."""
    tokens, written = inputs.tokens, inputs.written
    before = words.shape[1] - 1
    end = jnp.max(jnp.where(written, 1 + jnp.arange(tokens.shape[1])[None], 0), axis=1, keepdims=True)
    places = end - before + jnp.arange(before)[None]
    inside = (places >= 0) & jnp.take_along_axis(written, jnp.maximum(places, 0), axis=1)
    found = jnp.where(inside, jnp.take_along_axis(tokens, jnp.maximum(places, 0), axis=1), -2)
    alike = (words[None, :, :-1] == found[:, None]) | (words[None, :, :-1] < 0)
    return jnp.where(jnp.all(alike, axis=-1), words[None, :, -1], vocab)


def penalise(scores: jax.Array, inputs: ChoiceInput, penalty: jax.Array) -> jax.Array:
    """Returns scores with the penalty, a scalar or `[rows, 1]`, applied once to every id that occurs in the row."""
    rows, vocab = scores.shape
    ids = jnp.where(inputs.written, inputs.tokens, vocab)
    found = jnp.take_along_axis(scores, ids, axis=1, mode="clip")
    found = jnp.where(found < 0, found * penalty, found / penalty)
    return scores.at[jnp.arange(rows)[:, None], ids].set(found, mode="drop")


def repeats(inputs: ChoiceInput, n: int, vocab: int) -> jax.Array:
    """Returns int32 `[rows, room - n + 1]`: ids that would complete an n-gram the row already has; else `vocab`."""
    tokens, written = inputs.tokens, inputs.written
    windows = tokens.shape[1] - n + 1
    if windows < 1:
        return jnp.full((len(tokens), 1), vocab, jnp.int32)
    end = jnp.max(jnp.where(written, 1 + jnp.arange(tokens.shape[1])[None], 0), axis=1, keepdims=True)
    last = jnp.take_along_axis(tokens, end - (n - 1) + jnp.arange(n - 1)[None], axis=1, mode="clip")
    # Written columns are contiguous: a window is written completely if its first and last columns are.
    complete = written[:, :windows] & written[:, n - 1 :]
    for i in range(n - 1):
        complete &= tokens[:, i : i + windows] == last[:, i : i + 1]
    return jnp.where(complete, tokens[:, n - 1 :], vocab)


def _without(scores: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns scores with minus infinity at `ids` `[rows or 1, n]`; ids beyond the vocabulary are ignored."""
    return scores.at[jnp.arange(len(scores))[:, None], ids].set(-jnp.inf, mode="drop")
