"""Ring attention: each device keeps its queries, and the keys and values go round the devices.

Liu et al. 2023, arXiv:2310.01889, section 3. The backward pass computes the scores again, and sends the gradients of
keys and values round with them. All functions run inside `jax.shard_map`, on one device's positions of a row;
`kernels.sequence` calls them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.model.kernels.masks import Mask
from lmjax.model.kernels.parts import Dropout, Scoring, add_to, blind, mix, per_head, rows, scored, summed_in
from lmjax.model.kernels.softmax import BLOCK
from lmjax.model.positions.by_distance import ByDistance

# The mesh axis over which the positions of rows are split.
AXIS = "sequence"


class _Ring(NamedTuple):
    """The static values of ring attention.

    Attributes:
        ways: number of devices.
        steps: devices whose keys a device reads, beginning with its own.
        pieces: parts of a device's rows. With 2 they are in zig-zag order: device i has the parts i and 2 ways - 1 - i
            of a row, so that with a causal mask all devices compute as much (Brandon et al. 2023, arXiv:2311.09431).
        ordered: whether keys may be hidden from queries by their order or distance.
        scores: scale and cap of the scores.
    """

    ways: int
    steps: int
    pieces: int
    ordered: bool
    scores: Scoring

    def starts(self, device: jax.Array, size: int) -> list[jax.Array]:
        """Returns the first position of each piece, of `size` positions, of a device."""
        if self.pieces == 1:
            return [device * size]
        return [device * size, (2 * self.ways - 1 - device) * size]


def ring_plan(
    ways: int,
    queries: int,
    keys: int,
    mask: Mask,
    bias: jax.Array | ByDistance | None,
    scale: float,
    softcap: float | None,
) -> _Ring:
    """Returns the plan of a call, by what is known of its mask while tracing."""
    backward = mask.causal and mask.prefix is None and queries == keys
    static = mask.banded
    steps = min(ways, 1 - (1 - mask.window) // (keys // ways)) if backward and static else ways
    zigzag = backward and not static and not isinstance(bias, jax.Array) and queries // ways % 2 == 0
    ordered = backward or mask.hides_far
    return _Ring(ways, steps, 2 if zigzag else 1, ordered, Scoring(scale, softcap))


def over_ring(
    ring: _Ring,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | ByDistance | None,
    sink_logits: jax.Array | None,
    mask: Mask,
    drop: Dropout,
) -> jax.Array:
    """Returns a device's part of attention by the ring."""
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    if ring.pieces == 2:
        query, key, value = (_to_zigzag(ring, x) for x in (query, key, value))
    y = _ring(ring, query, key, value, bias, sink_logits, (mask, drop))
    return (_from_zigzag(ring, y) if ring.pieces == 2 else y).swapaxes(1, 2)


def _zigzag(ring: _Ring) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns (from, to) of the first half of each device's positions, and of the second half."""
    last = 2 * ring.ways - 1
    owners = [part if part < ring.ways else last - part for part in range(last + 1)]
    return tuple([(i, owners[2 * i + half]) for i in range(ring.ways)] for half in (0, 1))


def _to_zigzag(ring: _Ring, x: jax.Array) -> jax.Array:
    """Returns the positions of `x` `[batch, heads, positions, width]` that this device has in zig-zag order."""
    even, odd = (jax.lax.ppermute(x, AXIS, to) for x, to in zip(jnp.split(x, 2, axis=2), _zigzag(ring), strict=True))
    # Part i of the row is the first half of a device's positions if i is even.
    first = jax.lax.axis_index(AXIS) % 2 == 0
    return jnp.concatenate([jnp.where(first, even, odd), jnp.where(first, odd, even)], axis=2)


def _from_zigzag(ring: _Ring, x: jax.Array) -> jax.Array:
    """Returns `x` as it was before `_to_zigzag`."""
    low, high = jnp.split(x, 2, axis=2)
    first = jax.lax.axis_index(AXIS) % 2 == 0
    halves = jnp.where(first, low, high), jnp.where(first, high, low)
    back = ([(to, start) for start, to in pairs] for pairs in _zigzag(ring))
    return jnp.concatenate([jax.lax.ppermute(x, AXIS, to) for x, to in zip(halves, back, strict=True)], axis=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(
    ring: _Ring,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | ByDistance | None,
    sink_logits: jax.Array | None,
    rest: tuple[Mask, Dropout],
) -> jax.Array:
    """Returns a device's part of attention, `[batch, heads, queries, head_dim]`; heads come first in the arguments too.

    Args:
        ring: the plan.
        query: of this device.
        key: of this device.
        value: of this device.
        bias: `[1 or batch, heads, queries, all keys]`, or by distance.
        sink_logits: `[heads]`.
        rest: the mask of the whole rows, and the dropout.
    """
    return _ring_forward(ring, query, key, value, bias, sink_logits, rest)[0]


def _ring_forward(ring: _Ring, query: jax.Array, *others: Any) -> tuple[jax.Array, tuple[Any, ...]]:
    """Returns the result of `_ring`, and the residuals for its gradient."""
    key, value, bias, sink_logits, (mask, drop) = others
    dtype = summed_in(query.dtype)

    def tile(carry: tuple[jax.Array, ...], moving: tuple[jax.Array, ...], at: _Tile) -> Any:
        q, k, v, b, seen = at.cut(query, *moving, bias, mask)
        y, largest, total = (rows(x, at.row, at.queries) for x in carry)
        scores = scored(q, k, b, seen, ring.scores)
        new = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
        weights, kept = jnp.exp(scores - new), jnp.exp(largest - new)
        y = y * kept + mix(weights, v, at.fold(drop))
        total = total * kept + jnp.sum(weights, axis=-1, keepdims=True)
        return tuple(_put(x, part, at.row) for x, part in zip(carry, (y, new, total), strict=True)), moving

    narrow = (*query.shape[:3], 1)
    if sink_logits is None:
        largest, total = jnp.full(narrow, jnp.finfo(dtype).min), jnp.zeros(narrow, dtype)
    else:
        largest, total = jnp.broadcast_to(per_head(sink_logits, dtype), narrow), jnp.ones(narrow, dtype)
    carry = jnp.zeros(query.shape, dtype), largest, total
    (y, largest, total), _ = _round(ring, mask, query.shape[2], tile, carry, (key, value))
    y = jnp.where(blind(largest), 0, y / total).astype(value.dtype)
    return y, (query, *others, y, largest + jnp.log(total))


def _ring_backward(ring: _Ring, residuals: tuple[Any, ...], g: jax.Array) -> tuple[Any, ...]:
    """Returns the gradients of the arguments of `_ring`."""
    query, key, value, bias, sink_logits, (mask, drop), y, log_total = residuals
    dtype = log_total.dtype
    g = jnp.where(blind(log_total), 0, g.astype(dtype))
    share = jnp.sum(g * y.astype(dtype), axis=-1, keepdims=True)

    def tile(carry: tuple[Any, ...], moving: tuple[jax.Array, ...], at: _Tile) -> Any:
        (d_query, d_bias), (key, value, d_key, d_value) = carry, moving
        q, k, v, b, seen = at.cut(query, key, value, bias, mask)
        g_part, total, share_part = (rows(x, at.row, at.queries) for x in (g, log_total, share))
        scores, of_scores = jax.vjp(lambda q, k, b: scored(q, k, b, seen, ring.scores), q, k, b)
        weights = jnp.exp(scores - total)
        d_weights, d_v = jax.vjp(functools.partial(mix, drop=at.fold(drop)), weights, v)[1](g_part)
        d_q, d_k, d_b = of_scores(weights * (d_weights - share_part))
        if isinstance(bias, ByDistance):
            (d_values,) = jax.vjp(lambda bias: at.bias(bias), bias)[1](d_b)
            d_bias = jax.tree.map(jnp.add, d_bias, d_values)
        elif bias is not None:
            d_bias = add_to(d_bias, d_b, at.row, at.position)
        moving = key, value, add_to(d_key, d_k, at.column), add_to(d_value, d_v, at.column)
        return (add_to(d_query, d_q, at.row), d_bias), moving

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), (query, bias, key, value))
    carry, moving = _round(ring, mask, query.shape[2], tile, zeros[:2], (key, value, *zeros[2:]))
    home = [(i, (i - ring.steps + 1) % ring.ways) for i in range(ring.ways)]
    d_key, d_value = (jax.lax.ppermute(x, AXIS, home) for x in moving[2:])
    d_sinks = None
    if sink_logits is not None:
        d_sinks = -jnp.sum(jnp.exp(per_head(sink_logits, dtype) - log_total) * share, axis=(0, 2, 3))
    arrays, grads = (query, key, value, bias, sink_logits), (carry[0], d_key, d_value, carry[1], d_sinks)
    return *jax.tree.map(lambda x, grad: grad.astype(x.dtype), arrays, grads), None


_ring.defvjp(_ring_forward, _ring_backward)


class _Tile(NamedTuple):
    """Some queries of this device, and a piece of the keys that it reads.

    Attributes:
        row: the first query in this device's rows.
        index: its position in the whole row.
        queries: their number.
        column: the first key in the piece's device's keys.
        position: its position in the whole row.
        keys: their number.
    """

    row: int | jax.Array
    index: jax.Array
    queries: int
    column: int
    position: jax.Array
    keys: int

    def cut(
        self, query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | ByDistance | None, mask: Mask
    ) -> tuple[Any, ...]:
        """Returns the parts of queries, keys, values, bias and mask of this tile."""
        columns = slice(self.column, self.column + self.keys)
        seen = mask.part(self.index, self.queries, self.position, self.keys)
        query = rows(query, self.row, self.queries)
        return query, key[:, :, columns], value[:, :, columns], self.bias(bias), seen

    def bias(self, bias: jax.Array | ByDistance | None) -> jax.Array | None:
        """Returns the part of the bias."""
        if isinstance(bias, ByDistance):
            return bias.part(self.index, self.queries, self.position, self.keys)
        if bias is None:
            return None
        return jax.lax.dynamic_slice_in_dim(rows(bias, self.row, self.queries), self.position, self.keys, axis=3)

    def fold(self, drop: Dropout) -> Dropout:
        """Returns the dropout of this tile."""
        return drop.fold(self.index).fold(self.position)


def _round(
    ring: _Ring,
    mask: Mask,
    queries: int,
    tile: Callable[[Any, Any, _Tile], tuple[Any, Any]],
    carry: Any,
    moving: tuple[jax.Array, ...],
) -> tuple[Any, Any]:
    """Returns `carry` and `moving` after `tile(carry, moving, at)` of all tiles, while `moving` goes round the devices.

    Args:
        ring: the plan.
        mask: of the whole rows.
        queries: number of queries of a device.
        tile: the computation on a tile.
        carry: arrays that stay on their device.
        moving: arrays that go round, keys first, `[batch, heads, keys, width]`.
    """
    own, sizes = jax.lax.axis_index(AXIS), (queries // ring.pieces, moving[0].shape[2] // ring.pieces)
    block = next(size for size in range(min(BLOCK, sizes[0]), 0, -1) if sizes[0] % size == 0)

    def read(step: int | jax.Array, carry: Any, moving: Any) -> tuple[Any, Any]:
        source = (own - step) % ring.ways
        for i, start in enumerate(ring.starts(own, sizes[0])):
            for j, position in enumerate(ring.starts(source, sizes[1])):

                def run(given: Any, i: int = i, j: int = j, start: Any = start, position: Any = position) -> Any:
                    def one(n: jax.Array, given: Any) -> Any:
                        row = n * block
                        return tile(
                            *given,
                            _Tile(i * sizes[0] + row, start + row, block, j * sizes[1], position, sizes[1]),
                        )

                    return jax.lax.fori_loop(0, sizes[0] // block, one, given)

                given = carry, moving
                if not ring.ordered:
                    carry, moving = run(given)
                else:
                    visible = _visible(mask, start, sizes[0], position, sizes[1])
                    carry, moving = jax.lax.cond(visible, run, lambda given: given, given)
        return carry, moving

    def again(given: Any, step: jax.Array) -> tuple[Any, None]:
        carry, moving = given
        onward = [(i, (i + 1) % ring.ways) for i in range(ring.ways)]
        return read(step, carry, jax.lax.ppermute(moving, AXIS, onward)), None

    given = read(0, carry, moving)
    return jax.lax.scan(again, given, jnp.arange(1, ring.steps))[0] if ring.steps > 1 else given


def _visible(mask: Mask, start: jax.Array, queries: int, position: jax.Array, keys: int) -> jax.Array:
    """Returns whether the order lets any of some adjacent queries attend to any of some adjacent keys."""
    nearest = start - (position + keys - 1)
    visible = jnp.array(True)
    if mask.causal and mask.prefix is None:
        visible &= position <= start + queries - 1
    if mask.hides_far:
        visible &= (nearest < mask.window) & (position - (start + queries - 1) < mask.window)
    return visible


def _put(x: jax.Array, part: jax.Array, row: int | jax.Array) -> jax.Array:
    """Returns `x` `[batch, heads, rows, width]` with `part` in place of its rows from `row` on."""
    return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), row, axis=2)
