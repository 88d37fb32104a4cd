"""The cache of a decoder: keys and values of the tokens read so far, so that they are not computed again.

A slot holds one token of each row. Slots are written in order, also where a row has padding (segment 0) or several
segments; slots that `Cache.rewind` has emptied are written again. The cache stores a position and a segment for each
slot, and the mask is computed from these, never from the slot's index.

The number of filled slots is a scalar as long as all rows are written together, and int32 `[batch]` once a row was
replaced by `Cache.put` or emptied by `Cache.free`. Which of the two it is, is known when a program is compiled: with a
scalar, a layer writes one slice of its array; with `[batch]`, it writes one slice per row, which takes longer.
"""

from __future__ import annotations

from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.model.config import ModelConfig
from lmjax.model.key_value import CacheType, KeyValue


@flax.struct.dataclass
class Cache:
    """The tokens that a decoder has read: their keys and values, positions and segments.

    Attributes:
        layers: the keys and values of every layer, by the name of its attention.
        positions: int32 `[batch, capacity]`.
        segment_ids: int32 `[batch, capacity]`; 0: padding, or a slot that is not written.
        filled: number of written slots, an int32 scalar for all rows or int32 `[batch]`; None: the cache is empty, and
            this is known when the program is compiled.
        memory_positions: int32 `[batch, encoder length]`, positions of the encoder's output; None: no encoder.
        memory_segments: int32 `[batch, encoder length]`, segments of the encoder's output; None: no encoder.
    """

    layers: tuple[dict[str, KeyValue], ...]
    positions: jax.Array
    segment_ids: jax.Array
    filled: jax.Array | None = None
    memory_positions: jax.Array | None = None
    memory_segments: jax.Array | None = None

    # Keys are stored as their positions change them, in one slot after the other (see `lmjax.model.rolling` for another
    # way).
    late: ClassVar[bool] = False
    slots: ClassVar[None] = None

    def aimed(self, length: int, segment_ids: jax.Array | None) -> Cache:
        """Returns this cache."""
        del length, segment_ids
        return self

    @property
    def capacity(self) -> int:
        """Returns the number of slots in a layer without a window."""
        return self.positions.shape[1]

    @property
    def start(self) -> jax.Array | None:
        """Returns the slot of the next token, as `filled`."""
        return self.filled

    def extend(self, positions: jax.Array, segment_ids: jax.Array | None) -> Cache:
        """Returns the cache with positions and segments of new tokens written, and their slots counted as filled.

        Keys and values are written by the layers (`KeyValue.extend`).

        Args:
            positions: `[batch or 1, length]`, of the new tokens.
            segment_ids: `[batch, length]`; None: all are segment 1.
        """
        shape = self.positions.shape[0], positions.shape[1]
        segment_ids = jnp.ones(shape, jnp.int32) if segment_ids is None else segment_ids
        start = 0 if self.filled is None else self.filled
        return self.replace(
            positions=_put(self.positions, jnp.broadcast_to(positions, shape), start),
            segment_ids=_put(self.segment_ids, segment_ids, start),
            filled=jnp.asarray(start + shape[1], jnp.int32),
        )

    def positions_and_segments(self, slots: int, length: int) -> tuple[jax.Array, jax.Array]:
        """Returns positions and segments `[batch, keys]` of the keys that `KeyValue.extend` returns.

        Call it after `extend` has counted the new tokens as filled.

        Args:
            slots: number of slots in the layer.
            length: number of new tokens.
        """
        if slots >= self.capacity:
            return self.positions, self.segment_ids
        ring = jnp.arange(slots)[None]
        before = jnp.reshape(self.filled - (length if length > 1 else 0), (-1, 1))
        number = before - 1 - (before - 1 - ring) % slots
        if length > 1:
            number = jnp.concatenate([number, before + jnp.arange(length)[None]], axis=1)
        positions, segments = (_columns(x, number) for x in (self.positions, self.segment_ids))
        return positions, jnp.where(number >= 0, segments, 0)

    def rewind(self, filled: jax.Array) -> Cache:
        """Returns the cache with the slots from `filled` on emptied: they are masked, and the next tokens go there.

        Args:
            filled: number of slots that remain; a scalar or int32 `[batch]`.
        """
        kept = jnp.arange(self.capacity)[None] < jnp.reshape(filled, (-1, 1))
        return self.replace(segment_ids=jnp.where(kept, self.segment_ids, 0), filled=filled)

    def reorder(self, parents: jax.Array) -> Cache:
        """Returns the cache whose row i is row `parents[i]` of this one.

        The encoder's keys and values are not reordered: row i and row `parents[i]` must have the same encoder input.
        """
        layers = tuple({**layer, "attention": layer["attention"].take(parents)} for layer in self.layers)
        positions, segment_ids = (jnp.take(x, parents, axis=0) for x in (self.positions, self.segment_ids))
        filled = _filled_of(self.filled, parents)
        return self.replace(layers=layers, positions=positions, segment_ids=segment_ids, filled=filled)

    def repeat(self, times: int) -> Cache:
        """Returns the cache with each row repeated `times` times; the copies of a row are adjacent."""
        rows = jnp.repeat(jnp.arange(self.positions.shape[0]), times)
        layers = tuple({name: kept.take(rows) for name, kept in layer.items()} for layer in self.layers)
        fields = self.replace(layers=(), filled=None)
        fields = jax.tree.map(lambda x: jnp.take(x, rows, axis=0), fields)
        return fields.replace(layers=layers, filled=_filled_of(self.filled, rows))

    def put(self, row: int | jax.Array, other: Cache) -> Cache:
        """Returns the cache with the rows from `row` on replaced by those of another cache; all other rows stay.

        The two caches may have different numbers of filled slots.

        Args:
            row: the first row to be replaced. A traced one is not checked: the rows of `other` must fit behind it.
            other: a cache of the same model and kind that has read a prompt, with at most as many rows, slots and
                encoder tokens as this one.

        Raises:
            ValueError: the rows do not fit.
        """
        self._check_fits(row, other)
        ring = [layer["attention"].slots < other.capacity for layer in other.layers]
        layers = tuple(
            {name: kept.put(row, new[name], ring[i] and name == "attention") for name, kept in old.items()}
            for i, (old, new) in enumerate(zip(self.layers, other.layers, strict=True))
        )
        names = ["positions", "segment_ids"]
        names += ["memory_positions", "memory_segments"] if self.memory_positions is not None else []
        fields = {name: _put_rows(getattr(self, name), getattr(other, name), row) for name in names}
        filled = jnp.broadcast_to(other.filled, other.positions.shape[:1])
        filled = jax.lax.dynamic_update_slice_in_dim(self.filled_rows, filled, row, axis=0)
        return self.replace(layers=layers, filled=filled, **fields)

    def free(self, row: int | jax.Array) -> Cache:
        """Returns the cache with one row emptied: all its slots are masked, and its next token goes into slot 0."""
        names = ["segment_ids"] + (["memory_segments"] if self.memory_segments is not None else [])
        segments = {name: getattr(self, name).at[row].set(0) for name in names}
        return self.replace(filled=self.filled_rows.at[row].set(0), **segments)

    @property
    def filled_rows(self) -> jax.Array:
        """Returns int32 `[batch]`: the number of written slots in each row."""
        rows = self.positions.shape[:1]
        return jnp.broadcast_to(jnp.int32(0) if self.filled is None else self.filled, rows)

    def _check_fits(self, row: int | jax.Array, other: Cache) -> None:
        """Raises ValueError if the rows of another cache cannot be put into this one."""
        rows, batch = (x.positions.shape[0] for x in (other, self))
        if other.filled is None:
            raise ValueError("the cache of the new rows has read nothing; read their prompts with it first")
        if rows > batch or (not isinstance(row, jax.core.Tracer) and not 0 <= row <= batch - rows):
            raise ValueError(f"{rows} rows cannot join at row {row} of a cache of {batch}; give a row that leaves room")
        memory = [0 if x.memory_positions is None else x.memory_positions.shape[1] for x in (other, self)]
        for name, found, room in (("slots", other.capacity, self.capacity), ("tokens of memory", *memory)):
            if found > room:
                raise ValueError(f"rows of {found} {name} cannot join a cache of {room}; make the cache larger")
        if (memory[0] == 0) != (memory[1] == 0):
            raise ValueError(
                "rows with an encoder's output cannot join a cache without one, nor the other way round; read them with"
                " the same model"
            )


def init_cache(
    config: ModelConfig,
    batch: int,
    capacity: int,
    *,
    memory_length: int = 0,
    kind: CacheType = "compute",
    slack: int = 0,
) -> Cache:
    """Returns an empty cache for the decoder of a model.

    A layer with a window has `attention.window + slack` slots. With `attention.sink_tokens` it has `capacity` slots,
    because the first tokens of a segment stay visible.

    Args:
        config: of the model.
        batch: number of rows.
        capacity: number of slots, the most tokens that a row can have, padding included.
        memory_length: length of the encoder's output; 0: no encoder.
        kind: int8 stores each number of keys and values in one byte, with one scale per head and token.
        slack: the most tokens that `Cache.rewind` may remove.
    """

    def make(slots: int) -> KeyValue:
        return KeyValue.zeros((batch, config.kv_heads), slots, config.width_of_head, config.dtype, kind)

    layers, attention = [], config.side_attention(True)
    for layer in range(config.side_layers(True)):
        local = not attention.is_global(layer) and not attention.sink_tokens
        slots = min(capacity, attention.window + slack) if local else capacity
        cross = {"cross_attention": make(memory_length)} if memory_length else {}
        layers.append({"attention": make(slots)} | cross)
    empty = jnp.zeros((batch, capacity), jnp.int32)
    memory = jnp.zeros((batch, memory_length), jnp.int32) if memory_length else None
    return Cache(tuple(layers), empty, empty, None, memory, memory)


def _put(x: jax.Array, new: jax.Array, start: int | jax.Array) -> jax.Array:
    """Returns `[batch, capacity]` with `new` written from column `start` on, a scalar or int32 `[batch]`."""
    if jnp.ndim(start):
        rows, columns = jnp.arange(len(x))[:, None], start[:, None] + jnp.arange(new.shape[1])[None]
        return x.at[rows, columns].set(new.astype(x.dtype), mode="drop")
    return jax.lax.dynamic_update_slice(x, new.astype(x.dtype), (0, start))


def _put_rows(x: jax.Array, new: jax.Array, row: int | jax.Array) -> jax.Array:
    """Returns `[batch, columns]` with `new` `[rows, columns or fewer]` in the rows from `row` on, padded with zeros."""
    new = jnp.pad(new, ((0, 0), (0, x.shape[1] - new.shape[1])))
    return jax.lax.dynamic_update_slice_in_dim(x, new, row, axis=0)


def _columns(x: jax.Array, number: jax.Array) -> jax.Array:
    """Returns the columns of `x` `[batch, capacity]` with the indices `number` `[batch or 1, columns]`, clipped."""
    if len(number) == 1:
        return jnp.take(x, number[0], axis=1, mode="clip")
    return jnp.take_along_axis(x, jnp.clip(number, 0, x.shape[1] - 1), axis=1)


def _filled_of(filled: jax.Array | None, rows: jax.Array) -> jax.Array | None:
    """Returns `Cache.filled` for the selected rows."""
    return filled if filled is None or filled.ndim == 0 else jnp.take(filled, rows, axis=0)
