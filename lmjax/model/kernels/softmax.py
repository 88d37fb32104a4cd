"""Attention in plain JAX: with all scores in memory (`plain`), or with those of one block of queries (`blockwise`)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.model.kernels.masks import Mask
from lmjax.model.kernels.xla_workarounds import unknown_zero
from lmjax.model.layers import dropout

BLOCK = 128  # Queries whose scores are in memory at the same time.
SPANS = 8  # The most parts of a row that are compiled separately, each with its own range of keys.


class Dropout(NamedTuple):
    """The dropout of attention probabilities; a pytree of traced values.

    Attributes:
        rate: None: no dropout.
        seed: a random key; None if `rate` is None.
    """

    rate: jax.Array | None
    seed: jax.Array | None

    def __call__(self, weights: jax.Array) -> jax.Array:
        """Returns `weights` with the same elements dropped at every call."""
        return dropout(weights, self.rate, lambda _: self.seed)

    def fold(self, row: int | jax.Array) -> "Dropout":
        """Returns the dropout of the block that starts at `row`."""
        return self if self.rate is None else Dropout(self.rate, jax.random.fold_in(self.seed, row))


class _Span(NamedTuple):
    """Adjacent blocks of a row, as static numbers.

    Attributes:
        start: the first query.
        size: queries in a block.
        count: number of blocks.
        first: the first key that a query of the span may attend to.
        end: the end of these keys.
    """

    start: int
    size: int
    count: int
    first: int
    end: int


class _Plan(NamedTuple):
    """The static values of a call: its spans, and the scale and cap of the scores."""

    spans: tuple[_Span, ...]
    scale: float
    softcap: float | None


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
    scores = _scores(query, key, bias, seen, _Plan((), scale, softcap))
    return _average(scores, value, sink_logits, drop)[0].astype(value.dtype).swapaxes(1, 2)


def scores(
    query: jax.Array, key: jax.Array, *, mask: Mask, bias: jax.Array | None, scale: float, softcap: float | None
) -> jax.Array:
    """Returns float32 `[batch, heads, queries, keys]`, what the softmax of `attention` is taken of; arguments as there.

    Masked scores are the least float.
    """
    query, key = (x.swapaxes(1, 2) for x in (query, key))
    return _scores(query, key, bias, mask.dense(query.shape[2], key.shape[2]), _Plan((), scale, softcap))


def softmax(scores: jax.Array, sink_logits: jax.Array | None) -> jax.Array:
    """Returns float32 `[batch, heads, queries, keys]`, the probabilities of `attention`, for its scores.

    The probabilities of a query sum to 1 minus that of its sink logit, or to 0 if all its keys are masked.
    """
    keys, blind = scores.shape[-1], _blind(jnp.max(scores, axis=-1, keepdims=True))
    if sink_logits is not None:
        sinks = jnp.broadcast_to(_per_head(sink_logits, scores.dtype), (*scores.shape[:3], 1))
        scores = jnp.concatenate([scores, sinks], axis=-1)
    return jnp.where(blind, 0, jax.nn.softmax(scores, axis=-1)[..., :keys])


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
    plan = _Plan(_spans(query.shape[2], key.shape[2], mask), scale, softcap)
    return _blocks(plan, query, key, value, bias, sink_logits, (mask, drop)).swapaxes(1, 2)


def _spans(queries: int, keys: int, mask: Mask) -> tuple[_Span, ...]:
    """Returns the spans of a row; the last block may be shorter than `BLOCK`, and is then a span by itself."""
    blocks, rest = divmod(queries, BLOCK)
    each = max(1, -(-blocks // SPANS))
    found = [(i * BLOCK, BLOCK, min(each, blocks - i)) for i in range(0, blocks, each)]
    found += [(blocks * BLOCK, rest, 1)] if rest else []
    return tuple(_Span(*span, *mask.columns(span[0], span[0] + span[1] * span[2], keys)) for span in found)


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
        found = _average(_scores(q, k, b, seen, plan), v, sink_logits, drop.fold(row))
        return tuple(_add(x, piece, row) for x, piece in zip(carry, found, strict=True))

    dtype = _summed_in(query.dtype)
    empty = jnp.zeros(query.shape, value.dtype), jnp.zeros((*query.shape[:3], 1), dtype)
    y, log_total = _each_block(plan.spans, block, empty)
    return y, (query, *others, y, log_total)


def _blocks_backward(plan: _Plan, residuals: tuple[Any, ...], g: jax.Array) -> tuple[Any, ...]:
    """Returns the gradients of the arguments of `_blocks`; the scores are computed again."""
    query, key, value, bias, sink_logits, (mask, drop), y, log_total = residuals
    dtype = log_total.dtype

    def block(grads: tuple[Any, ...], span: _Span, row: jax.Array) -> tuple[Any, ...]:
        q, k, v, b, seen = _cut(span, row, query, key, value, bias, mask)
        y_part, g_part, total = (_rows(x, row, span.size).astype(dtype) for x in (y, g, log_total))
        g_part = jnp.where(_blind(total), 0, g_part)
        scores, of_scores = jax.vjp(lambda q, k, b: _scores(q, k, b, seen, plan), q, k, b)
        weights = jnp.exp(scores - total)
        mix = functools.partial(_mix, drop=drop.fold(row))
        d_weights, d_v = jax.vjp(mix, weights, v)[1](g_part)
        share = jnp.sum(g_part * y_part, axis=-1, keepdims=True)
        d_q, d_k, d_b = of_scores(weights * (d_weights - share))
        d_query, d_key, d_value, d_bias, d_sinks = grads
        if bias is not None:
            d_bias = _add(d_bias, d_b, row, span.first)
        if sink_logits is not None:
            d_sinks -= jnp.sum(jnp.exp(_per_head(sink_logits, dtype) - total) * share, axis=(0, 2, 3))
        return _add(d_query, d_q, row), _add(d_key, d_k, span.first), _add(d_value, d_v, span.first), d_bias, d_sinks

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


def _rows(x: jax.Array, row: jax.Array, size: int) -> jax.Array:
    """Returns `size` rows of `x` `[batch, heads, rows, ...]` from `row` on."""
    return jax.lax.dynamic_slice_in_dim(x, row, size, axis=2)


def _add(x: jax.Array, part: jax.Array, row: int | jax.Array, column: int = 0) -> jax.Array:
    """Returns `x` `[batch, heads, rows, columns]` with `part` added from `row` and `column` on."""
    at = tuple(jnp.int32(i) for i in (0, 0, row, column))
    return jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(x, at, part.shape) + part.astype(x.dtype), at)


def _cut(
    span: _Span, row: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, mask: Mask
) -> tuple[Any, ...]:
    """Returns the parts of queries, keys, values, bias and mask that a block reads."""
    keys = slice(span.first, span.end)
    bias = None if bias is None else _rows(bias[..., keys], row, span.size)
    seen = mask.part(row, span.size, span.first, span.end - span.first)
    return _rows(query, row, span.size), key[:, :, keys], value[:, :, keys], bias, seen


def _scores(query: jax.Array, key: jax.Array, bias: jax.Array | None, seen: jax.Array | None, plan: _Plan) -> jax.Array:
    """Returns the input of the softmax, float32 `[batch, heads, queries, keys]`; masked scores are the least float.

    Query heads that share a key head are treated as more queries of one head.
    """
    batch, heads, queries, _ = query.shape
    scores = _compare(_grouped(query, key.shape[1]), key).reshape(batch, heads, queries, key.shape[2]) * plan.scale
    if plan.softcap is not None:
        scores = plan.softcap * jnp.tanh(scores / plan.softcap)
    if bias is not None:
        scores += bias.astype(scores.dtype)
    return scores if seen is None else jnp.where(seen, scores, jnp.finfo(scores.dtype).min)


def _average(
    scores: jax.Array, value: jax.Array, sink_logits: jax.Array | None, drop: Dropout
) -> tuple[jax.Array, jax.Array]:
    """Returns the values weighted by the softmax, float32, and the logarithm of its denominator, `[..., queries, 1]`.

    The denominator divides the weighted sum instead of the weights, because that array is smaller than the scores.
    """
    largest = jnp.max(scores, axis=-1, keepdims=True)
    if sink_logits is not None:
        largest = jnp.maximum(largest, _per_head(sink_logits, scores.dtype))
    largest = jax.lax.stop_gradient(largest)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if sink_logits is not None:
        total += jnp.exp(_per_head(sink_logits, scores.dtype) - largest)
    y = _mix(weights, value, drop) / total
    # A query whose keys are all masked has equal weights for all keys, also of other documents; it gets zeros instead.
    return jnp.where(_blind(largest), 0, y), largest + jnp.log(total)


def _blind(largest: jax.Array) -> jax.Array:
    """Returns True where all keys of a query are masked.

    Args:
        largest: `[batch, heads, queries, 1]`, the largest score, or the logarithm of the softmax's denominator.
    """
    return largest == jnp.finfo(largest.dtype).min


def _per_head(sink_logits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns `sink_logits` `[heads]` as `[1, heads, 1, 1]`, to broadcast with scores."""
    return sink_logits.astype(dtype)[None, :, None, None]


def _grouped(x: jax.Array, kv_heads: int) -> jax.Array:
    """Returns `x` `[batch, heads, queries, width]` as `[batch, kv_heads, group * queries, width]`."""
    return x.reshape(x.shape[0], kv_heads, -1, x.shape[3])


def _mix(weights: jax.Array, value: jax.Array, drop: Dropout) -> jax.Array:
    """Returns float32 `[batch, heads, queries, head_dim]`: values times weights `[batch, heads, queries, keys]`."""
    batch, heads, queries, _ = weights.shape
    weights = _grouped(drop(weights.astype(value.dtype)), value.shape[1])
    return _combine(weights, value).reshape(batch, heads, queries, value.shape[3])


def _dot(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the product of two operands of the same dtype, summed in float32 or wider."""
    return jnp.einsum(equation, x, y, preferred_element_type=_summed_in(x.dtype))


def _summed_in(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype in which products are summed: float64 for operands in float64, else float32."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


def _dot_over_queries(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Returns `[batch, heads, keys, head_dim]`: `weights` transposed, times `x`.

    Computed as the transpose of `x` transposed times `weights`, which on a CPU takes 0.5 (bfloat16) to 0.9 (float32) of
    the time of the product with transposed weights (jax 0.10.2, weights `[2, 12, 512, 512]`, width 64).
    """
    return _dot("bhqd,bhqk->bhdk", x, weights).swapaxes(2, 3)


@jax.custom_vjp
def _compare(query: jax.Array, key: jax.Array) -> jax.Array:
    """Returns float32 `[batch, heads, queries, keys]`, the products of queries and keys.

    The upstream gradient is rounded to the operands' dtype, as in fused kernels. Autodiff would multiply float32
    gradients by bfloat16 operands, at half the speed.
    """
    return _dot("bhqd,bhkd->bhqk", query, key)


def _compare_backward(operands: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    query, key = operands
    g = g.astype(query.dtype)
    return _dot("bhqk,bhkd->bhqd", g, key).astype(query.dtype), _dot_over_queries(g, query).astype(key.dtype)


_compare.defvjp(lambda query, key: (_compare(query, key), (query, key)), _compare_backward)


@jax.custom_vjp
def _combine(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Returns float32 `[batch, heads, queries, head_dim]`; its upstream gradient is rounded as in `_compare`."""
    return _dot("bhqk,bhkd->bhqd", weights, value)


def _combine_backward(operands: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights, value = operands
    g = g.astype(value.dtype)
    return _dot("bhqd,bhkd->bhqk", g, value).astype(weights.dtype), _dot_over_queries(weights, g).astype(value.dtype)


_combine.defvjp(lambda weights, value: (_combine(weights, value), (weights, value)), _combine_backward)
