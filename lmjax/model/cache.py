"""The cache of a decoder: keys and values of the tokens that it has read, so that the next one costs one token.

A slot holds a token of every row. Slots are written in order, whatever each row has there: padding (segment 0), several
segments, or tokens that were taken back and are written over. Who sees whom follows from the positions and segments
that stand beside the slots, never from the slots' numbers.

How many slots are filled is one scalar as long as all rows are written together, and int32 `[batch]` once a row has
joined by `Cache.put` or left by `Cache.free`. The rank is known when a program is compiled: with the scalar every layer
writes one slice of its array, with a number for each row it writes a slice of every row, which takes more time.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.model.config import ModelConfig
from lmjax.model.key_value import CacheType, KeyValue


@flax.struct.dataclass
class Cache:
    """What a decoder has read.

    Attributes:
        layers: the keys and values of every layer, by the name of its attention.
        positions: int32 `[batch, capacity]`.
        segment_ids: int32 `[batch, capacity]`; 0: padding, or nothing yet.
        filled: int32 scalar, slots written in all rows; or int32 `[batch]`, in each; None: none, which the compiler
            knows.
        memory_positions: int32 `[batch, length]` of the encoder's output; None: there is none.
        memory_segments: int32 `[batch, length]`, the same.
    """

    layers: tuple[dict[str, KeyValue], ...]
    positions: jax.Array
    segment_ids: jax.Array
    filled: jax.Array | None = None
    memory_positions: jax.Array | None = None
    memory_segments: jax.Array | None = None

    @property
    def capacity(self) -> int:
        """Returns the slots of a layer that sees everything."""
        return self.positions.shape[1]

    def extend(self, positions: jax.Array, segment_ids: jax.Array | None) -> Cache:
        """Returns the cache with the places of new tokens, and the slots that they take counted as filled.

        Args:
            positions: `[batch or 1, length]`.
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

    def places(self, slots: int, length: int) -> tuple[jax.Array, jax.Array]:
        """Returns positions and segments of the keys that `KeyValue.extend` gives, once `length` new ones are counted.

        Args:
            slots: of the layer.
            length: new tokens.
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
        """Returns the cache with the slots from `filled` on taken back: hidden until they are written again.

        Args:
            filled: slots that stay; a scalar or int32 `[batch]`.
        """
        kept = jnp.arange(self.capacity)[None] < jnp.reshape(filled, (-1, 1))
        return self.replace(segment_ids=jnp.where(kept, self.segment_ids, 0), filled=filled)

    def reorder(self, parents: jax.Array) -> Cache:
        """Returns the cache whose row i is the row `parents[i]` of this one; both read the same memory."""
        layers = tuple({**layer, "attention": layer["attention"].take(parents)} for layer in self.layers)
        positions, segment_ids = (jnp.take(x, parents, axis=0) for x in (self.positions, self.segment_ids))
        filled = _filled_of(self.filled, parents)
        return self.replace(layers=layers, positions=positions, segment_ids=segment_ids, filled=filled)

    def repeat(self, times: int) -> Cache:
        """Returns the cache with every row `times` times, next to each other."""
        rows = jnp.repeat(jnp.arange(self.positions.shape[0]), times)
        layers = tuple({name: kept.take(rows) for name, kept in layer.items()} for layer in self.layers)
        places = self.replace(layers=(), filled=None)
        places = jax.tree.map(lambda x: jnp.take(x, rows, axis=0), places)
        return places.replace(layers=layers, filled=_filled_of(self.filled, rows))

    def put(self, row: int | jax.Array, other: Cache) -> Cache:
        """Returns the cache with the rows of another in the place of those from `row` on, however far each is.

        What the rows held before is gone. What they hold now is what they would hold alone; all other rows stay.

        Args:
            row: the first that is replaced; a traced one must leave room for the others.
            other: of the same model and kind, with a prompt read; at most as many rows, slots and tokens of memory.

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
        places = {name: _put_rows(getattr(self, name), getattr(other, name), row) for name in names}
        filled = jnp.broadcast_to(other.filled, other.positions.shape[:1])
        filled = jax.lax.dynamic_update_slice_in_dim(self.filled_rows, filled, row, axis=0)
        return self.replace(layers=layers, filled=filled, **places)

    def free(self, row: int | jax.Array) -> Cache:
        """Returns the cache with one row empty: nothing of it is seen, and its next token goes into its first slot."""
        names = ["segment_ids"] + (["memory_segments"] if self.memory_segments is not None else [])
        segments = {name: getattr(self, name).at[row].set(0) for name in names}
        return self.replace(filled=self.filled_rows.at[row].set(0), **segments)

    @property
    def filled_rows(self) -> jax.Array:
        """Returns int32 `[batch]`: slots written in each row."""
        rows = self.positions.shape[:1]
        return jnp.broadcast_to(jnp.int32(0) if self.filled is None else self.filled, rows)

    def _check_fits(self, row: int | jax.Array, other: Cache) -> None:
        """Raises ValueError where the rows of another cache cannot stand in this one."""
        rows, batch = (x.positions.shape[0] for x in (other, self))
        if other.filled is None:
            raise ValueError("the rows that join have read nothing; read their prompts first")
        if rows > batch or (not isinstance(row, jax.core.Tracer) and not 0 <= row <= batch - rows):
            raise ValueError(f"{rows} rows cannot join at row {row} of a cache of {batch}; give a row that leaves room")
        memory = [0 if x.memory_positions is None else x.memory_positions.shape[1] for x in (other, self)]
        for name, found, room in (("slots", other.capacity, self.capacity), ("tokens of memory", *memory)):
            if found > room:
                raise ValueError(f"rows of {found} {name} cannot join a cache of {room}; make the cache larger")
        if (memory[0] == 0) != (memory[1] == 0):
            raise ValueError("rows without a memory cannot join a cache with one; read them with the same model")


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

    A layer with a window holds `attention.window` tokens and `slack`; where first tokens stay visible through the
    window (`attention.sink_tokens`), it holds all.

    Args:
        config: of the model.
        batch: rows.
        capacity: tokens of a row, padding counted.
        memory_length: tokens of an encoder-decoder's encoder.
        kind: int8 keeps keys and values in one byte each, and a scale for every head of every token.
        slack: tokens that `Cache.rewind` may take back.
    """

    def make(slots: int) -> KeyValue:
        return KeyValue.zeros((batch, config.kv_heads), slots, config.width_of_head, config.dtype, kind)

    layers = []
    for layer in range(config.side_layers(True)):
        local = not config.attention.is_global(layer) and not config.attention.sink_tokens
        slots = min(capacity, config.attention.window + slack) if local else capacity
        cross = {"cross_attention": make(memory_length)} if memory_length else {}
        layers.append({"attention": make(slots)} | cross)
    empty = jnp.zeros((batch, capacity), jnp.int32)
    memory = jnp.zeros((batch, memory_length), jnp.int32) if memory_length else None
    return Cache(tuple(layers), empty, empty, None, memory, memory)


def _put(x: jax.Array, new: jax.Array, start: int | jax.Array) -> jax.Array:
    """Returns `[batch, capacity]` with `new` from column `start` on, which is a scalar or one for each row."""
    if jnp.ndim(start):
        rows, columns = jnp.arange(len(x))[:, None], start[:, None] + jnp.arange(new.shape[1])[None]
        return x.at[rows, columns].set(new.astype(x.dtype), mode="drop")
    return jax.lax.dynamic_update_slice(x, new.astype(x.dtype), (0, start))


def _put_rows(x: jax.Array, new: jax.Array, row: int | jax.Array) -> jax.Array:
    """Returns `[batch, columns]` with `new` `[rows, fewer columns]` in the rows from `row` on, and zeros behind it."""
    new = jnp.pad(new, ((0, 0), (0, x.shape[1] - new.shape[1])))
    return jax.lax.dynamic_update_slice_in_dim(x, new, row, axis=0)


def _columns(x: jax.Array, number: jax.Array) -> jax.Array:
    """Returns `[batch, columns]` of `[batch, capacity]`, by their number `[batch or 1, columns]`; none is outside."""
    if len(number) == 1:
        return jnp.take(x, number[0], axis=1, mode="clip")
    return jnp.take_along_axis(x, jnp.clip(number, 0, x.shape[1] - 1), axis=1)


def _filled_of(filled: jax.Array | None, rows: jax.Array) -> jax.Array | None:
    """Returns the filled slots of a choice of rows, in the form of `Cache.filled`."""
    return filled if filled is None or filled.ndim == 0 else jnp.take(filled, rows, axis=0)
