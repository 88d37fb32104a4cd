"""Attention over rows whose positions are split over the mesh axis `sequence`: ring attention, and all-to-all.

Both are exact. In `ring` each device keeps its queries, and the keys and values go round the devices (Liu et al. 2023,
arXiv:2310.01889, section 3); the backward pass computes the scores again and sends the gradients of keys and values
round with them. In `all_to_all` the devices exchange positions for heads, so that each has some heads of the whole row,
and any kernel computes them (DeepSpeed-Ulysses: Jacobs et al. 2023, arXiv:2309.14509, section 3). The rules of
`lmjax.axes` say which: all-to-all splits the heads over `sequence`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmjax import axes
from lmjax.errors import FlagError
from lmjax.model.kernels.masks import Mask
from lmjax.model.kernels.softmax import BLOCK, Dropout, _add, _blind, _mix, _per_head, _Plan, _rows, _scores, _summed_in
from lmjax.model.positions.by_distance import ByDistance

_AXIS = "sequence"
# Kernels by name that the ring does the same as.
_OWN = ("auto", "plain", "blockwise")


def split_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    kernel: str,
    local: Callable[..., jax.Array],
    mask: Mask,
    bias: jax.Array | ByDistance | None,
    sink_logits: jax.Array | None,
    dropout_rate: jax.Array | None,
    make_rng: Callable[[str], jax.Array] | None,
    **scores: Any,
) -> jax.Array:
    """Returns `lmjax.model.kernels.attention` of rows that are split over the mesh axis `sequence`.

    Args:
        query: as for `attention`; the other arguments that are not named here too.
        key: as for `attention`.
        value: as for `attention`.
        kernel: the name of the kernel, or auto.
        local: `attention` itself, for the heads of one device in all-to-all.
        mask: as for `attention`.
        bias: as for `attention`.
        sink_logits: as for `attention`.
        dropout_rate: as for `attention`.
        make_rng: as for `attention`.
        scores: `scale` and `softcap`, as for `attention`.

    Raises:
        FlagError: the axis does not divide the length or, in all-to-all, the heads; or the ring cannot use the kernel.
    """
    ways, queries, keys = axes.sequence_ways(), query.shape[1], key.shape[1]
    length, heads = nn.logical_to_mesh_axes(("act_attention_length", "act_attention_heads"))
    check_split(ways, (queries, keys), query.shape[2] // _size("tensor"), kernel, ring=length is not None)
    seed = None if dropout_rate is None else make_rng("dropout")
    rows = nn.logical_to_mesh_axes(("act_batch",))[0]
    whole = mask.filled(queries, keys)
    # An array with one row is for all rows.
    of_mask = jax.tree.map(lambda x: _spec(rows if jnp.ndim(x) and len(x) > 1 else None, x), whole)
    of_bias = None
    if isinstance(bias, ByDistance):
        of_bias = ByDistance(PartitionSpec(heads, None))
    elif bias is not None:
        of_bias = PartitionSpec(rows if len(bias) > 1 else None, heads, length, None)
    split = nn.logical_to_mesh_axes(("act_batch", "act_length", "act_heads", None))
    compute = functools.partial(_over_ring, _ring_plan(ways, queries, keys, mask, bias, **scores))
    if length is None:
        window = mask.window if isinstance(mask.window, int) else None
        compute = functools.partial(_over_heads, functools.partial(local, kernel=kernel, **scores), window)
    return jax.shard_map(
        compute,
        in_specs=(split, split, split, of_bias, PartitionSpec(heads), of_mask, PartitionSpec()),
        out_specs=split,
        check_vma=False,
    )(query, key, value, bias, sink_logits, whole, Dropout(dropout_rate, seed))


def check_split(ways: int, lengths: tuple[int, ...], heads: int, kernel: str, *, ring: bool) -> None:
    """Raises FlagError if attention cannot be split over the mesh axis `sequence`.

    Args:
        ways: devices of the axis.
        lengths: of the rows of queries and keys.
        heads: query heads on a device.
        kernel: `attention.kernel` of the model.
        ring: whether by the ring; else by all-to-all.
    """
    flag = f"--config.parallel.sequence={ways}"
    for length in lengths:
        if length % ways:
            raise FlagError(
                f"{flag} does not divide rows of {length} positions; take a length (--length, "
                f"--config.task.target_length) that is a multiple of {ways}"
            )
    if ring and kernel not in _OWN:
        raise FlagError(
            f"--config.model.attention.kernel={kernel}: ring attention has a kernel of its own; use auto, or "
            "--config.parallel.sequence_attention=all_to_all"
        )
    if not ring and heads % ways:
        raise FlagError(
            f"--config.parallel.sequence_attention=all_to_all: {flag} does not divide the {heads} heads of a device; "
            "take fewer devices, or --config.parallel.sequence_attention=ring"
        )


def _size(axis: str) -> int:
    """Returns the size of an axis of the mesh in use."""
    return jax.sharding.get_abstract_mesh().shape[axis]


def _spec(rows: Any, x: Any) -> PartitionSpec:
    """Returns the spec of an array of the mask: each device has all positions of its rows."""
    return PartitionSpec(*[rows][: jnp.ndim(x)])


def _own(drop: Dropout) -> Dropout:
    """Returns the dropout of this device, which differs from that of all others."""
    for axis in jax.sharding.get_abstract_mesh().axis_names:
        drop = drop.fold(jax.lax.axis_index(axis))
    return drop


def _over_heads(
    local: Callable[..., jax.Array],
    window: int | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | ByDistance | None,
    sink_logits: jax.Array | None,
    mask: Mask,
    drop: Dropout,
) -> jax.Array:
    """Returns a device's part of attention by all-to-all; `window` is known while tracing, or None."""
    ways, drop = _size(_AXIS), _own(drop)
    # Too few key heads are repeated, so that each device has those of its query heads.
    copies = ways // math.gcd(ways, key.shape[2])
    exchange = functools.partial(jax.lax.all_to_all, axis_name=_AXIS, tiled=True)
    query, key, value = (
        exchange(x if x is query or copies == 1 else jnp.repeat(x, copies, axis=2), split_axis=2, concat_axis=1)
        for x in (query, key, value)
    )
    mask = mask if window is None else mask.replace(window=window)
    if isinstance(bias, ByDistance):
        bias = bias.part(0, query.shape[1], 0, key.shape[1])
    y = local(
        query, key, value, mask=mask, bias=bias, sink_logits=sink_logits, dropout_rate=drop.rate,
        make_rng=lambda _: drop.seed,
    )  # fmt: skip
    return exchange(y, split_axis=1, concat_axis=2)


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
    scores: _Plan

    def starts(self, device: jax.Array, size: int) -> list[jax.Array]:
        """Returns the first position of each piece, of `size` positions, of a device."""
        if self.pieces == 1:
            return [device * size]
        return [device * size, (2 * self.ways - 1 - device) * size]


def _ring_plan(
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
    static = isinstance(mask.window, int) and not mask.sink_tokens
    steps = min(ways, 1 - (1 - mask.window) // (keys // ways)) if backward and static else ways
    zigzag = backward and not static and not isinstance(bias, jax.Array) and queries // ways % 2 == 0
    ordered = backward or (mask.window is not None and not mask.sink_tokens)
    return _Ring(ways, steps, 2 if zigzag else 1, ordered, _Plan((), scale, softcap))


def _over_ring(
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
    y = _ring(ring, query, key, value, bias, sink_logits, (mask, _own(drop)))
    return (_from_zigzag(ring, y) if ring.pieces == 2 else y).swapaxes(1, 2)


def _zigzag(ring: _Ring) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns (from, to) of the first half of each device's positions, and of the second half."""
    last = 2 * ring.ways - 1
    owners = [part if part < ring.ways else last - part for part in range(last + 1)]
    return tuple([(i, owners[2 * i + half]) for i in range(ring.ways)] for half in (0, 1))


def _to_zigzag(ring: _Ring, x: jax.Array) -> jax.Array:
    """Returns the positions of `x` `[batch, heads, positions, width]` that this device has in zig-zag order."""
    even, odd = (jax.lax.ppermute(x, _AXIS, to) for x, to in zip(jnp.split(x, 2, axis=2), _zigzag(ring), strict=True))
    # Part i of the row is the first half of a device's positions if i is even.
    first = jax.lax.axis_index(_AXIS) % 2 == 0
    return jnp.concatenate([jnp.where(first, even, odd), jnp.where(first, odd, even)], axis=2)


def _from_zigzag(ring: _Ring, x: jax.Array) -> jax.Array:
    """Returns `x` as it was before `_to_zigzag`."""
    low, high = jnp.split(x, 2, axis=2)
    first = jax.lax.axis_index(_AXIS) % 2 == 0
    halves = jnp.where(first, low, high), jnp.where(first, high, low)
    back = ([(to, start) for start, to in pairs] for pairs in _zigzag(ring))
    return jnp.concatenate([jax.lax.ppermute(x, _AXIS, to) for x, to in zip(halves, back, strict=True)], axis=2)


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
    dtype = _summed_in(query.dtype)

    def tile(carry: tuple[jax.Array, ...], moving: tuple[jax.Array, ...], at: _Tile) -> Any:
        q, k, v, b, seen = at.cut(query, *moving, bias, mask)
        y, largest, total = (_rows(x, at.row, at.queries) for x in carry)
        scores = _scores(q, k, b, seen, ring.scores)
        new = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
        weights, kept = jnp.exp(scores - new), jnp.exp(largest - new)
        y = y * kept + _mix(weights, v, at.fold(drop))
        total = total * kept + jnp.sum(weights, axis=-1, keepdims=True)
        return tuple(_put(x, part, at.row) for x, part in zip(carry, (y, new, total), strict=True)), moving

    narrow = (*query.shape[:3], 1)
    if sink_logits is None:
        largest, total = jnp.full(narrow, jnp.finfo(dtype).min), jnp.zeros(narrow, dtype)
    else:
        largest, total = jnp.broadcast_to(_per_head(sink_logits, dtype), narrow), jnp.ones(narrow, dtype)
    carry = jnp.zeros(query.shape, dtype), largest, total
    (y, largest, total), _ = _round(ring, mask, query.shape[2], tile, carry, (key, value))
    y = jnp.where(_blind(largest), 0, y / total).astype(value.dtype)
    return y, (query, *others, y, largest + jnp.log(total))


def _ring_backward(ring: _Ring, residuals: tuple[Any, ...], g: jax.Array) -> tuple[Any, ...]:
    """Returns the gradients of the arguments of `_ring`."""
    query, key, value, bias, sink_logits, (mask, drop), y, log_total = residuals
    dtype = log_total.dtype
    g = jnp.where(_blind(log_total), 0, g.astype(dtype))
    share = jnp.sum(g * y.astype(dtype), axis=-1, keepdims=True)

    def tile(carry: tuple[Any, ...], moving: tuple[jax.Array, ...], at: _Tile) -> Any:
        (d_query, d_bias), (key, value, d_key, d_value) = carry, moving
        q, k, v, b, seen = at.cut(query, key, value, bias, mask)
        g_part, total, share_part = (_rows(x, at.row, at.queries) for x in (g, log_total, share))
        scores, of_scores = jax.vjp(lambda q, k, b: _scores(q, k, b, seen, ring.scores), q, k, b)
        weights = jnp.exp(scores - total)
        d_weights, d_v = jax.vjp(functools.partial(_mix, drop=at.fold(drop)), weights, v)[1](g_part)
        d_q, d_k, d_b = of_scores(weights * (d_weights - share_part))
        if isinstance(bias, ByDistance):
            (d_values,) = jax.vjp(lambda bias: at.bias(bias), bias)[1](d_b)
            d_bias = jax.tree.map(jnp.add, d_bias, d_values)
        elif bias is not None:
            d_bias = _add(d_bias, d_b, at.row, at.position)
        moving = key, value, _add(d_key, d_k, at.column), _add(d_value, d_v, at.column)
        return (_add(d_query, d_q, at.row), d_bias), moving

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), (query, bias, key, value))
    carry, moving = _round(ring, mask, query.shape[2], tile, zeros[:2], (key, value, *zeros[2:]))
    home = [(i, (i - ring.steps + 1) % ring.ways) for i in range(ring.ways)]
    d_key, d_value = (jax.lax.ppermute(x, _AXIS, home) for x in moving[2:])
    d_sinks = None
    if sink_logits is not None:
        d_sinks = -jnp.sum(jnp.exp(_per_head(sink_logits, dtype) - log_total) * share, axis=(0, 2, 3))
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
        query = _rows(query, self.row, self.queries)
        return query, key[:, :, columns], value[:, :, columns], self.bias(bias), seen

    def bias(self, bias: jax.Array | ByDistance | None) -> jax.Array | None:
        """Returns the part of the bias."""
        if isinstance(bias, ByDistance):
            return bias.part(self.index, self.queries, self.position, self.keys)
        if bias is None:
            return None
        return jax.lax.dynamic_slice_in_dim(_rows(bias, self.row, self.queries), self.position, self.keys, axis=3)

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
    own, sizes = jax.lax.axis_index(_AXIS), (queries // ring.pieces, moving[0].shape[2] // ring.pieces)
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
        return read(step, carry, jax.lax.ppermute(moving, _AXIS, onward)), None

    given = read(0, carry, moving)
    return jax.lax.scan(again, given, jnp.arange(1, ring.steps))[0] if ring.steps > 1 else given


def _visible(mask: Mask, start: jax.Array, queries: int, position: jax.Array, keys: int) -> jax.Array:
    """Returns whether the order lets any of some adjacent queries attend to any of some adjacent keys."""
    nearest = start - (position + keys - 1)
    visible = jnp.array(True)
    if mask.causal and mask.prefix is None:
        visible &= position <= start + queries - 1
    if mask.window is not None and not mask.sink_tokens:
        visible &= (nearest < mask.window) & (position - (start + queries - 1) < mask.window)
    return visible


def _put(x: jax.Array, part: jax.Array, row: int | jax.Array) -> jax.Array:
    """Returns `x` `[batch, heads, rows, width]` with `part` in place of its rows from `row` on."""
    return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), row, axis=2)
