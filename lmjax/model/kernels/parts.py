"""The parts of softmax attention in plain JAX that its forms put together: scores, weighted values and dropout."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.model import cpu
from lmjax.model.dropout import dropout
from lmjax.model.platform import platform


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

    def fold(self, row: int | jax.Array) -> Dropout:
        """Returns the dropout of the block that starts at `row`."""
        return self if self.rate is None else Dropout(self.rate, jax.random.fold_in(self.seed, row))


class Scoring(NamedTuple):
    """How scores are made of products of queries and keys, as static numbers.

    Attributes:
        scale: factor on the products.
        softcap: bound of the scaled products, by a tanh; None: no bound.
    """

    scale: float
    softcap: float | None


def rows(x: jax.Array, row: jax.Array, size: int) -> jax.Array:
    """Returns `size` rows of `x` `[batch, heads, rows, ...]` from `row` on."""
    return jax.lax.dynamic_slice_in_dim(x, row, size, axis=2)


def add_to(x: jax.Array, part: jax.Array, row: int | jax.Array, column: int = 0) -> jax.Array:
    """Returns `x` `[batch, heads, rows, columns]` with `part` added from `row` and `column` on."""
    at = tuple(jnp.int32(i) for i in (0, 0, row, column))
    return jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(x, at, part.shape) + part.astype(x.dtype), at)


def scored(query: jax.Array, key: jax.Array, bias: jax.Array | None, seen: jax.Array | None, how: Scoring) -> jax.Array:
    """Returns the input of the softmax, float32 `[batch, heads, queries, keys]`; masked scores are the least float.

    Query heads that share a key head are treated as more queries of one head.
    """
    batch, heads, queries, _ = query.shape
    scores = _compare(_grouped(query, key.shape[1]), key).reshape(batch, heads, queries, key.shape[2]) * how.scale
    if how.softcap is not None:
        scores = how.softcap * jnp.tanh(scores / how.softcap)
    if bias is not None:
        bias = bias.astype(scores.dtype)
        # Sizes can be symbolic on other platforms (`platform.portable`).
        scores += cpu.repeated(bias, batch) if platform() == "cpu" and len(bias) < batch else bias
    return scores if seen is None else jnp.where(seen, scores, jnp.finfo(scores.dtype).min)


def blind(largest: jax.Array) -> jax.Array:
    """Returns True where all keys of a query are masked.

    Args:
        largest: `[batch, heads, queries, 1]`, the largest score, or the logarithm of the softmax's denominator.
    """
    return largest == jnp.finfo(largest.dtype).min


def per_head(sink_logits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns `sink_logits` `[heads]` as `[1, heads, 1, 1]`, to broadcast with scores."""
    return sink_logits.astype(dtype)[None, :, None, None]


def _grouped(x: jax.Array, kv_heads: int) -> jax.Array:
    """Returns `x` `[batch, heads, queries, width]` as `[batch, kv_heads, group * queries, width]`."""
    return x.reshape(x.shape[0], kv_heads, -1, x.shape[3])


def mix(weights: jax.Array, value: jax.Array, drop: Dropout) -> jax.Array:
    """Returns float32 `[batch, heads, queries, head_dim]`: values times weights `[batch, heads, queries, keys]`."""
    batch, heads, queries, _ = weights.shape
    weights = _grouped(drop(weights.astype(value.dtype)), value.shape[1])
    return _combine(weights, value).reshape(batch, heads, queries, value.shape[3])


def _dot(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the product of two operands of the same dtype, summed in float32 or wider."""
    return jnp.einsum(equation, x, y, preferred_element_type=summed_in(x.dtype))


def summed_in(dtype: jnp.dtype) -> jnp.dtype:
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
