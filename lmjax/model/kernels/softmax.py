"""Attention in plain JAX: with all scores in memory (`plain`), or with those of one block of queries (`blockwise`)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.model.kernels.masks import Mask
from lmjax.model.kernels.parts import Dropout, Scoring, add_to, blind, mix, per_head, rows, scored, summed_in
from lmjax.model.kernels.xla_workarounds import unknown_zero

BLOCK = 128  # Queries whose scores are in memory at the same time.
SPANS = 8  # The most parts of a row that are compiled separately, each with its own range of keys.


class _Span(NamedTuple):
    """Adjacent blocks of a row, as static numbers.

    Attributes:
        start: the first query.
        size: queries in a block.
        count: number of blocks.
        first: the first key, behind the leading ones, that a query of the span may attend to.
        end: the end of these keys.
        leading: keys before all others that every query may attend to.
    """

    start: int
    size: int
    count: int
    first: int
    end: int
    leading: int = 0

    def keys_of(self, x: jax.Array, axis: int) -> jax.Array:
        """Returns the part of `x` that belongs to the keys of the span."""
        found = jax.lax.slice_in_dim(x, self.first, self.end, axis=axis)
        if not self.leading:
            return found
        return jnp.concatenate([jax.lax.slice_in_dim(x, 0, self.leading, axis=axis), found], axis=axis)

    def add_keys(self, x: jax.Array, part: jax.Array) -> jax.Array:
        """Returns `x` `[batch, heads, keys, width]` with a part for the keys of the span added."""
        if self.leading:
            x = add_to(x, part[:, :, : self.leading], 0)
        return add_to(x, part[:, :, self.leading :], self.first)

    def add_scores(self, x: jax.Array, part: jax.Array, row: jax.Array) -> jax.Array:
        """Returns `x` `[batch, heads, queries, keys]` with a part for a block and the keys of the span added."""
        if self.leading:
            x = add_to(x, part[..., : self.leading], row)
        return add_to(x, part[..., self.leading :], row, self.first)

    def seen(self, mask: Mask, row: jax.Array) -> jax.Array | None:
        """Returns the mask of a block and the keys of the span; None: all are visible."""
        found = mask.part(row, self.size, self.first, self.end - self.first)
        if not self.leading or found is None:
            return found
        first = mask.part(row, self.size, 0, self.leading)
        batch = max(len(first), len(found))
        both = (jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in (first, found))
        return jnp.concatenate(list(both), axis=-1)


class _Plan(NamedTuple):
    """The static values of a call: its spans, and how its scores are made."""

    spans: tuple[_Span, ...]
    scoring: Scoring


def plain(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: Mask,
    bias: jax.Array | None,
    scale: float,
    softcap: float | None,
    sink_logits: jax.Array | None,
    dropout_rate: jax.Array | None,
    make_rng: Callable[[str], jax.Array] | None,
) -> jax.Array:
    """Returns `attention` with all scores in memory at the same time."""
    drop = Dropout(dropout_rate, None if dropout_rate is None else make_rng("dropout"))
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    seen = mask.dense(query.shape[2], key.shape[2])
    scores = scored(query, key, bias, seen, Scoring(scale, softcap))
    return _average(scores, value, sink_logits, drop)[0].astype(value.dtype).swapaxes(1, 2)


def scores(
    query: jax.Array, key: jax.Array, *, mask: Mask, bias: jax.Array | None, scale: float, softcap: float | None
) -> jax.Array:
    """Returns float32 `[batch, heads, queries, keys]`, what the softmax of `attention` is taken of; arguments as there.

    Masked scores are the least float.
    """
    query, key = (x.swapaxes(1, 2) for x in (query, key))
    return scored(query, key, bias, mask.dense(query.shape[2], key.shape[2]), Scoring(scale, softcap))


def softmax(scores: jax.Array, sink_logits: jax.Array | None) -> jax.Array:
    """Returns float32 `[batch, heads, queries, keys]`, the probabilities of `attention`, for its scores.

    The probabilities of a query sum to 1 minus that of its sink logit, or to 0 if all its keys are masked.
    """
    keys, hidden = scores.shape[-1], blind(jnp.max(scores, axis=-1, keepdims=True))
    if sink_logits is not None:
        sinks = jnp.broadcast_to(per_head(sink_logits, scores.dtype), (*scores.shape[:3], 1))
        scores = jnp.concatenate([scores, sinks], axis=-1)
    return jnp.where(hidden, 0, jax.nn.softmax(scores, axis=-1)[..., :keys])


def blockwise(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: Mask,
    bias: jax.Array | None,
    scale: float,
    softcap: float | None,
    sink_logits: jax.Array | None,
    dropout_rate: jax.Array | None,
    make_rng: Callable[[str], jax.Array] | None,
) -> jax.Array:
    """Returns `attention`, computed in blocks of queries whose scores are computed again in the backward pass.

    Memory is linear in the length (Rabe and Staats 2021, arXiv:2112.05682; the backward pass is that of Dao et al.
    2022, arXiv:2205.14135, appendix B.2). A row is cut into about `SPANS` spans, each with its own static range of
    keys, so that keys masked for all queries of a span cost nothing. The blocks of a span are a loop, so that long
    rows compile as fast as short ones.
    """
    drop = Dropout(dropout_rate, None if dropout_rate is None else make_rng("dropout"))
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    plan = _Plan(_spans(query.shape[2], key.shape[2], mask), Scoring(scale, softcap))
    return _blocks(plan, query, key, value, bias, sink_logits, (mask, drop)).swapaxes(1, 2)


def _spans(queries: int, keys: int, mask: Mask) -> tuple[_Span, ...]:
    """Returns the spans of a row; the last block may be shorter than `BLOCK`, and is then a span by itself."""
    blocks, rest = divmod(queries, BLOCK)
    each = max(1, -(-blocks // SPANS))
    found = [(i * BLOCK, BLOCK, min(each, blocks - i)) for i in range(0, blocks, each)]
    found += [(blocks * BLOCK, rest, 1)] if rest else []
    return tuple(
        _Span(*span, *mask.columns(span[0], span[0] + span[1] * span[2], keys), mask.leading) for span in found
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks(
    plan: _Plan,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    sink_logits: jax.Array | None,
    rest: tuple[Mask, Dropout],
) -> jax.Array:
    """Returns `attention` as `[batch, heads, queries, head_dim]`; in the arguments heads come before length too."""
    return _blocks_forward(plan, query, key, value, bias, sink_logits, rest)[0]


def _blocks_forward(plan: _Plan, query: jax.Array, *others: Any) -> tuple[jax.Array, tuple[Any, ...]]:
    """Returns the result of `_blocks`, and the residuals for its gradient."""
    key, value, bias, sink_logits, (mask, drop) = others

    def block(carry: tuple[jax.Array, ...], span: _Span, row: jax.Array) -> tuple[jax.Array, ...]:
        q, k, v, b, seen = _cut(span, row, query, key, value, bias, mask)
        found = _average(scored(q, k, b, seen, plan.scoring), v, sink_logits, drop.fold(row))
        return tuple(add_to(x, piece, row) for x, piece in zip(carry, found, strict=True))

    dtype = summed_in(query.dtype)
    empty = jnp.zeros(query.shape, value.dtype), jnp.zeros((*query.shape[:3], 1), dtype)
    y, log_total = _each_block(plan.spans, block, empty)
    return y, (query, *others, y, log_total)


def _blocks_backward(plan: _Plan, residuals: tuple[Any, ...], g: jax.Array) -> tuple[Any, ...]:
    """Returns the gradients of the arguments of `_blocks`; the scores are computed again."""
    query, key, value, bias, sink_logits, (mask, drop), y, log_total = residuals
    dtype = log_total.dtype

    def block(grads: tuple[Any, ...], span: _Span, row: jax.Array) -> tuple[Any, ...]:
        q, k, v, b, seen = _cut(span, row, query, key, value, bias, mask)
        y_part, g_part, total = (rows(x, row, span.size).astype(dtype) for x in (y, g, log_total))
        g_part = jnp.where(blind(total), 0, g_part)
        scores, of_scores = jax.vjp(lambda q, k, b: scored(q, k, b, seen, plan.scoring), q, k, b)
        weights = jnp.exp(scores - total)
        combined = functools.partial(mix, drop=drop.fold(row))
        d_weights, d_v = jax.vjp(combined, weights, v)[1](g_part)
        share = jnp.sum(g_part * y_part, axis=-1, keepdims=True)
        d_q, d_k, d_b = of_scores(weights * (d_weights - share))
        d_query, d_key, d_value, d_bias, d_sinks = grads
        if bias is not None:
            d_bias = span.add_scores(d_bias, d_b, row)
        if sink_logits is not None:
            d_sinks -= jnp.sum(jnp.exp(per_head(sink_logits, dtype) - total) * share, axis=(0, 2, 3))
        return add_to(d_query, d_q, row), span.add_keys(d_key, d_k), span.add_keys(d_value, d_v), d_bias, d_sinks

    arrays = (query, key, value, bias, sink_logits)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), arrays)
    grads = _each_block(plan.spans, block, zeros, after=g)
    return *jax.tree.map(lambda x, grad: grad.astype(x.dtype), arrays, grads), None


_blocks.defvjp(_blocks_forward, _blocks_backward)


def _each_block(
    spans: tuple[_Span, ...],
    body: Callable[[Any, _Span, jax.Array], Any],
    carry: Any,
    after: jax.Array | None = None,
) -> Any:
    """Returns the `carry` after `body(carry, span, row)` of all blocks, run one after the other.

    `unknown_zero` makes each span depend on the one before it, so that XLA cannot run them at the same time.

    Args:
        spans: of the row.
        body: one block.
        carry: arrays.
        after: an array that must be computed before the first block starts.
    """
    for span in spans:
        row = span.start + unknown_zero(jax.tree.leaves((carry, after)))
        if span.count == 1:
            carry = body(carry, span, row)
        else:
            carry = jax.lax.fori_loop(
                0, span.count, lambda i, carry, span=span, row=row: body(carry, span, row + i * span.size), carry
            )
    return carry


def _cut(
    span: _Span, row: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, mask: Mask
) -> tuple[Any, ...]:
    """Returns the parts of queries, keys, values, bias and mask that a block reads."""
    if bias is not None:
        bias = rows(span.keys_of(bias, 3), row, span.size)
    key, value = (span.keys_of(x, 2) for x in (key, value))
    return rows(query, row, span.size), key, value, bias, span.seen(mask, row)


def _average(
    scores: jax.Array, value: jax.Array, sink_logits: jax.Array | None, drop: Dropout
) -> tuple[jax.Array, jax.Array]:
    """Returns the values weighted by the softmax, float32, and the logarithm of its denominator, `[..., queries, 1]`.

    The denominator divides the weighted sum instead of the weights, because that array is smaller than the scores.
    """
    largest = jnp.max(scores, axis=-1, keepdims=True)
    if sink_logits is not None:
        largest = jnp.maximum(largest, per_head(sink_logits, scores.dtype))
    largest = jax.lax.stop_gradient(largest)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if sink_logits is not None:
        total += jnp.exp(per_head(sink_logits, scores.dtype) - largest)
    y = mix(weights, value, drop) / total
    # A query whose keys are all masked has equal weights for all keys, also of other documents; it gets zeros instead.
    return jnp.where(blind(largest), 0, y), largest + jnp.log(total)
