"""The cache of a decoder: keys and values of the tokens that it has read, so that the next one costs one token.

A slot holds a token of every row. Slots are written in order, whatever each row has there: padding (segment 0), several
segments, or tokens that were taken back and are written over. Who sees whom follows from the positions and segments
that stand beside the slots, never from the slots' numbers.
"""

from __future__ import annotations

from typing import Literal, Self

import flax.struct
import jax
import jax.numpy as jnp

from lmjax import axes
from lmjax.model.config import ModelConfig

CacheType = Literal["compute", "int8"]
_AXES = ("act_batch", "act_heads")


@flax.struct.dataclass
class KeyValue:
    """Keys and values of one attention, heads before slots, so that a head's keys lie next to each other.

    A batch of one row, and one head, are no dimension: XLA on a CPU would reshape the array between writing and reading
    it, and so copy all of it at every token.

    Attributes:
        key: `[batch, kv_heads, slots, head_dim]` less the first two where they are 1, rotated already.
        value: the same.
        key_scale: float32 `[..., slots, 1]`, what an int8 key is multiplied by; None: stored as computed.
        value_scale: the same for the values.
        shape: batch and kv_heads.
    """

    key: jax.Array
    value: jax.Array
    key_scale: jax.Array | None = None
    value_scale: jax.Array | None = None
    shape: tuple[int, int] = flax.struct.field(pytree_node=False, default=(1, 1))

    @classmethod
    def zeros(cls, shape: tuple[int, int], slots: int, width: int, dtype: str, kind: CacheType) -> Self:
        """Returns an empty one.

        Args:
            shape: batch and kv_heads.
            slots: of a row.
            width: of a head.
            dtype: of what is computed.
            kind: of what is stored.
        """
        rest = tuple(n for n in shape if n > 1)
        zeros = jnp.zeros((*rest, slots, width), jnp.int8 if kind == "int8" else dtype)
        scale = jnp.zeros((*rest, slots, 1), jnp.float32) if kind == "int8" else None
        return cls(zeros, zeros, scale, scale, shape)._constrained()

    @property
    def slots(self) -> int:
        """Returns the number of slots; of a layer with a window, only so many as it can see."""
        return self.key.shape[-2]

    def extend(
        self, key: jax.Array, value: jax.Array, filled: jax.Array | None, capacity: int
    ) -> tuple[jax.Array, jax.Array, KeyValue]:
        """Returns the keys and values to be asked `[batch, keys, kv_heads, head_dim]`, and the cache with new ones.

        Args:
            key: of the new tokens, `[batch, length, kv_heads, head_dim]`.
            value: the same.
            filled: slots written before; None: none, and the new tokens see each other alone.
            capacity: slots of the whole cache; a layer that has fewer writes over its oldest.
        """
        new = self._packed(key), self._packed(value)
        new = KeyValue(new[0][0], new[1][0], new[0][1], new[1][1], self.shape)
        length, dtype = key.shape[1], key.dtype
        ring = self.slots < capacity
        written = self._write(new, filled, ring)
        if filled is None:
            return key, value, written
        if ring and length > 1:
            # The first of the new tokens still see what the last of them write over.
            old, new = self.read(dtype), new.read(dtype)
            return *(jnp.concatenate(pair, axis=1) for pair in zip(old, new, strict=True)), written
        return *written.read(dtype), written

    def read(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """Returns all keys and values, `[batch, slots, kv_heads, head_dim]`."""
        pairs = (self.key, self.key_scale), (self.value, self.value_scale)
        found = (x.astype(dtype) if scale is None else (x * scale).astype(dtype) for x, scale in pairs)
        return tuple(x.reshape(*self.shape, *x.shape[-2:]).swapaxes(1, 2) for x in found)

    def take(self, rows: jax.Array) -> KeyValue:
        """Returns the cache whose row i is the row `rows[i]` of this one."""

        def take(x: jax.Array) -> jax.Array:
            whole = jnp.take(x.reshape(*self.shape, *x.shape[-2:]), rows, axis=0)
            return whole.reshape(*(n for n in whole.shape[:2] if n > 1), *x.shape[-2:])

        return jax.tree.map(take, self).replace(shape=(len(rows), self.shape[1]))

    def _packed(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Returns `[batch, length, kv_heads, head_dim]` as it is stored, and its scales."""
        x = x.swapaxes(1, 2)
        x = x.reshape(*(n for n in self.shape if n > 1), *x.shape[-2:])
        if self.key_scale is None:
            return x.astype(self.key.dtype), None
        x = x.astype(jnp.float32)
        scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
        return jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale

    def _constrained(self) -> KeyValue:
        """Returns the same, split over the mesh as activations are."""
        names = [name for name, n in zip(_AXES, self.shape, strict=True) if n > 1]
        return jax.tree.map(lambda x: axes.constrain(x, (*names, None, None)), self)

    def _write(self, new: KeyValue, filled: jax.Array | None, ring: bool) -> KeyValue:
        """Returns the cache with `new` in its next slots."""
        length, slots = new.slots, self.slots
        start = 0 if filled is None else filled
        if not ring or (length == 1 and filled is not None):
            at = start % slots if ring else start
            written = jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, at, axis=-2), self, new)
        else:
            kept = min(length, slots)
            last = jax.tree.map(lambda y: y[..., length - kept :, :], new)
            at = (start + length - kept + jnp.arange(kept)) % slots
            written = jax.tree.map(lambda x, y: x.at[..., at, :].set(y), self, last)
        return written._constrained()


@flax.struct.dataclass
class Cache:
    """What a decoder has read.

    Attributes:
        layers: the keys and values of every layer, by the name of its attention.
        positions: int32 `[batch, capacity]`.
        segment_ids: int32 `[batch, capacity]`; 0: padding, or nothing yet.
        filled: int32 scalar, slots written; None: none, which the compiler knows.
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
            filled=jnp.int32(start + shape[1]),
        )

    def places(self, slots: int, length: int) -> tuple[jax.Array, jax.Array]:
        """Returns positions and segments of the keys that `KeyValue.extend` gives, once `length` new ones are counted.

        Args:
            slots: of the layer.
            length: new tokens.
        """
        if slots >= self.capacity:
            return self.positions, self.segment_ids
        ring = jnp.arange(slots)
        before = self.filled - (length if length > 1 else 0)
        number = before - 1 - (before - 1 - ring) % slots
        if length > 1:
            number = jnp.concatenate([number, before + jnp.arange(length)])
        positions, segments = (jnp.take(x, number, axis=1, mode="clip") for x in (self.positions, self.segment_ids))
        return positions, jnp.where(number[None] >= 0, segments, 0)

    def rewind(self, filled: jax.Array) -> Cache:
        """Returns the cache with the slots from `filled` on taken back: hidden until they are written again."""
        kept = jnp.arange(self.capacity)[None] < filled
        return self.replace(segment_ids=jnp.where(kept, self.segment_ids, 0), filled=filled)

    def reorder(self, parents: jax.Array) -> Cache:
        """Returns the cache whose row i is the row `parents[i]` of this one; both read the same memory."""
        layers = tuple({**layer, "attention": layer["attention"].take(parents)} for layer in self.layers)
        positions, segment_ids = (jnp.take(x, parents, axis=0) for x in (self.positions, self.segment_ids))
        return self.replace(layers=layers, positions=positions, segment_ids=segment_ids)

    def repeat(self, times: int) -> Cache:
        """Returns the cache with every row `times` times, next to each other."""
        rows = jnp.repeat(jnp.arange(self.positions.shape[0]), times)
        layers = tuple({name: kept.take(rows) for name, kept in layer.items()} for layer in self.layers)
        places = self.replace(layers=(), filled=None)
        places = jax.tree.map(lambda x: jnp.take(x, rows, axis=0), places)
        return places.replace(layers=layers, filled=self.filled)


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

    A layer with a window holds `attention_window` tokens and `slack`; where first tokens stay visible through the
    window (`sink_tokens`), it holds all.

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
    for layer in range(config.decoder_layers):
        local = not config.is_global(layer) and not config.sink_tokens
        slots = min(capacity, config.attention_window + slack) if local else capacity
        cross = {"cross_attention": make(memory_length)} if memory_length else {}
        layers.append({"attention": make(slots)} | cross)
    empty = jnp.zeros((batch, capacity), jnp.int32)
    memory = jnp.zeros((batch, memory_length), jnp.int32) if memory_length else None
    return Cache(tuple(layers), empty, empty, None, memory, memory)


def _put(x: jax.Array, new: jax.Array, start: int | jax.Array) -> jax.Array:
    """Returns `[batch, capacity]` with `new` from column `start` on."""
    return jax.lax.dynamic_update_slice(x, new.astype(x.dtype), (0, start))
