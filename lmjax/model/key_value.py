"""The keys and values that one attention of a decoder keeps."""

from __future__ import annotations

from typing import Literal, Self

import flax.struct
import jax
import jax.numpy as jnp

from lmjax import axes

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
            filled: slots written before, as in `Cache`; None: none, and the new tokens see each other alone.
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
        found = (
            x.astype(dtype) if scale is None else (x.astype(scale.dtype) * scale).astype(dtype) for x, scale in pairs
        )
        return tuple(x.reshape(*self.shape, *x.shape[-2:]).swapaxes(1, 2) for x in found)

    def take(self, rows: jax.Array) -> KeyValue:
        """Returns the cache whose row i is the row `rows[i]` of this one."""

        def take(x: jax.Array) -> jax.Array:
            whole = jnp.take(x.reshape(*self.shape, *x.shape[-2:]), rows, axis=0)
            return whole.reshape(*(n for n in whole.shape[:2] if n > 1), *x.shape[-2:])

        return jax.tree.map(take, self).replace(shape=(len(rows), self.shape[1]))

    def put(self, row: int | jax.Array, other: KeyValue, ring: bool) -> KeyValue:
        """Returns the keys and values with those of other rows in the place of the rows from `row` on.

        Args:
            row: the first that is replaced.
            other: at most as many slots and rows as these.
            ring: whether the other ones have written over their oldest slots, whose order is that of their number.

        Raises:
            ValueError: they are stored in another form, or have slots that do not fit.
        """
        forms = [(kv.key.dtype, kv.key_scale is None, kv.shape[1], kv.key.shape[-1]) for kv in (self, other)]
        if forms[0] != forms[1]:
            raise ValueError(
                f"rows with keys of {other.key.dtype} {other.shape[1:]} cannot join a cache with keys of"
                f" {self.key.dtype} {self.shape[1:]}; read them with the same model and the same kind of cache"
            )
        if other.slots > self.slots or (ring and other.slots != self.slots):
            raise ValueError(
                f"rows of {other.slots} slots cannot join a cache of {self.slots} slots in a layer; read them with the"
                " slack of that cache, and with its capacity or a smaller one"
            )

        def put(x: jax.Array, y: jax.Array) -> jax.Array:
            whole, new = (z.reshape(*kv.shape, *z.shape[-2:]) for z, kv in ((x, self), (y, other)))
            return jax.lax.dynamic_update_slice(whole, new, (row, 0, 0, 0)).reshape(x.shape)

        return jax.tree.map(put, self, other.replace(shape=self.shape))._constrained()

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
        if jnp.ndim(start) and self.shape[0] == 1:
            start = start[0]
        if jnp.ndim(start):
            written = self._write_rows(new, start, ring)
        elif not ring or (length == 1 and filled is not None):
            at = start % slots if ring else start
            written = jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, at, axis=-2), self, new)
        else:
            kept = min(length, slots)
            last = jax.tree.map(lambda y: y[..., length - kept :, :], new)
            at = (start + length - kept + jnp.arange(kept)) % slots
            written = jax.tree.map(lambda x, y: x.at[..., at, :].set(y), self, last)
        return written._constrained()

    def _write_rows(self, new: KeyValue, start: jax.Array, ring: bool) -> KeyValue:
        """Returns the cache with `new` in the slots of each row from int32 `start` `[batch]` on, in a ring or not.

        A row that has no slot left is not written; in a ring there always is one.
        """
        length, slots = new.slots, self.slots
        kept = min(length, slots)
        at = start[:, None] + length - kept + jnp.arange(kept)[None]
        at = at % slots if ring else at
        rows = jnp.arange(self.shape[0])[:, None]

        def write(x: jax.Array, y: jax.Array) -> jax.Array:
            # Indices on both sides of the heads: rows and slots come first, and the heads behind them.
            heads = (slice(None),) * (x.ndim - 3)
            return x.at[(rows, *heads, at)].set(jnp.moveaxis(y[..., length - kept :, :], -2, 1), mode="drop")

        return jax.tree.map(write, self, new)
