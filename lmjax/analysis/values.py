"""One number of a model's output, such as how likely it finds a token or a label; traced, so that gradients follow.

| kind | the number is about |
|---|---|
| `logits` | a token of the vocabulary at a position |
| a head with labels, such as `classifier` or `tagger` | a label, of the row or at a position |
| `span` | an answer that begins and ends at two positions: the sum of both numbers |
| a head with one score, such as `choice` | the score |
| `embedding`, `hidden` | the cosine of the text's vector and a given vector; of hidden states, the mean of the tokens |
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.model.heads import HEADS
from lmjax.model.heads.rows import text_vectors
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.embedding import Embedding

PyTree = Any
Unit = Literal["log-odds", "logit"]
# The kinds of cosines: the head that makes vectors of texts, and the states of a model without it.
VECTOR, HIDDEN = Embedding.heads[0], "hidden"


@flax.struct.dataclass
class Ask:
    """Which number of the output is explained.

    Attributes:
        kind: in the table above.
        unit: log-odds: the logit minus the logarithm of the sum of the exponentials of all others; logit: the model's
            own number.
        position: int32, of the token; of an answer, its first token.
        last: int32, the last token of an answer.
        index: int32, the token or the label.
        against: int32: the number is the difference of its logit and this one's; -1: there is no other.
        vector: `[embed]`, what a vector is compared with.
    """

    kind: str = flax.struct.field(pytree_node=False)
    unit: Unit = flax.struct.field(pytree_node=False, default="log-odds")
    position: int | jax.Array = 0
    last: int | jax.Array = 0
    index: int | jax.Array = 0
    against: int | jax.Array = -1
    vector: jax.Array | None = None


def value(
    model: LanguageModel, params: PyTree, hidden: jax.Array, fields: Mapping[str, jax.Array], ask: Ask
) -> jax.Array:
    """Returns float32 `[batch]`, the number that is explained, for each row.

    Args:
        model: the model.
        params: of the model.
        hidden: `[batch, length, embed]`, as a call returns them.
        fields: of the batch.
        ask: the number.
    """
    at = functools.partial(jax.lax.dynamic_index_in_dim, axis=1, keepdims=False)
    if ask.kind == "logits":
        logits = model.apply({"params": params}, at(hidden, ask.position), method="logits")
        return _of_logits(logits.astype(jnp.float32), ask)
    if ask.kind in (VECTOR, HIDDEN):
        return _cosine(_vectors(model, params, hidden, fields, ask.kind), ask.vector)
    found = model.apply({"params": params}, ask.kind, hidden, fields, method="head")
    if ask.kind == "span":
        real = fields["segment_ids"] > 0
        start, end = (jnp.where(real, x.astype(jnp.float32), -1e9) for x in found)
        return _of_logits(start, ask.replace(index=ask.position)) + _of_logits(end, ask.replace(index=ask.last))
    (output,) = HEADS[ask.kind].outputs
    logits = found.astype(jnp.float32)
    if "length" in output.axes:
        logits = at(logits, ask.position)
    return logits if logits.ndim == 1 else _of_logits(logits, ask)


def _of_logits(logits: jax.Array, ask: Ask) -> jax.Array:
    """Returns the number for logits `[batch, choices]`."""
    own = jnp.take(logits, ask.index, axis=1)
    against = own - jnp.take(logits, jnp.maximum(ask.against, 0), axis=1)
    if ask.unit == "log-odds":
        chosen = (jnp.arange(logits.shape[1]) == ask.index)[None]
        own -= jax.nn.logsumexp(jnp.where(chosen, -jnp.inf, logits), axis=1)
    return jnp.where(ask.against >= 0, against, own)


def _vectors(
    model: LanguageModel, params: PyTree, hidden: jax.Array, fields: Mapping[str, jax.Array], kind: str
) -> jax.Array:
    """Returns float32 `[batch, embed]`, the vector of each row."""
    if kind == VECTOR:
        return model.apply({"params": params}, kind, hidden, fields, method="head")
    return text_vectors(hidden, fields.get("segment_ids"), None, "mean")


def _cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns `[batch]`, the cosines of vectors `[batch, embed]` and `[embed]`."""
    norms = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1) * jnp.sum(jnp.square(y)))
    return x @ y / jnp.maximum(norms, 1e-12)
