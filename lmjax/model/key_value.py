"""The key/value cache of one attention of a decoder."""

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
    """Keys and values of one attention. Heads come before slots, so that the keys of a head are contiguous.

    Dimensions `batch` and `kv_heads` of size 1 are left out of the arrays: with them, XLA on a CPU reshapes each array
    between writing and reading, and so copies it four times per token (jax 0.10.2, batch of one row; see
    experiments/README.md, "Generation beside transformers on torch"). To remove this, keep all dimensions wherever the
    code below filters them by `n != 1`.

    Attributes:
        key: `[batch, kv_heads, slots, head_dim]`, without the first two dimensions where they are 1; with rotary
            positions the keys are stored rotated.
        value: the same for the values, which are not rotated.
        key_scale: float32 `[..., slots, 1]`, the factor of each int8 key; None: keys are not quantised.
        value_scale: the same for the values.
        shape: (batch, kv_heads).
    """

    key: jax.Array
    value: jax.Array
    key_scale: jax.Array | None = None
    value_scale: jax.Array | None = None
    shape: tuple[int, int] = flax.struct.field(pytree_node=False, default=(1, 1))

    @classmethod
    def zeros(cls, shape: tuple[int, int], slots: int, width: int, dtype: str, kind: CacheType) -> Self:
        """Returns an empty cache.

        Args:
            shape: (batch, kv_heads).
            slots: number of slots in a row.
            width: of a head.
            dtype: of the model's activations.
            kind: how keys and values are stored: in that dtype, or as int8.
        """
        rest = tuple(n for n in shape if n != 1)
        zeros = jnp.zeros((*rest, slots, width), jnp.int8 if kind == "int8" else dtype)
        scale = jnp.zeros((*rest, slots, 1), jnp.float32) if kind == "int8" else None
        return cls(zeros, zeros, scale, scale, shape)._constrained()

    @property
    def slots(self) -> int:
        """Returns the number of slots; a layer with a window has only as many as its window needs."""
        return self.key.shape[-2]

    def extend(
        self, key: jax.Array, value: jax.Array, filled: jax.Array | None, capacity: int
    ) -> tuple[jax.Array, jax.Array, KeyValue]:
        """Returns keys and values `[batch, keys, kv_heads, head_dim]` to attend to, and the cache with new ones added.

        Args:
            key: of the new tokens, `[batch, length, kv_heads, head_dim]`.
            value: of the new tokens, the same shape.
            filled: slots written before, as in `Cache`; None: the cache is empty, and the new keys and values alone are
                returned.
            capacity: slots of a layer without a window; a layer with fewer overwrites its oldest slots.
        """
        new = self._of(key, value)
        length, dtype = key.shape[1], key.dtype
        ring = self.slots < capacity
        written = self._write(new, filled, ring)
        if filled is None:
            return key, value, written
        if ring and length > 1:
            # The first new tokens may attend to keys that the last new tokens overwrite, so the old keys are returned.
            old, new = self.read(dtype), new.read(dtype)
            return *(jnp.concatenate(pair, axis=1) for pair in zip(old, new, strict=True)), written
        return *written.read(dtype), written

    def overwrite(self, key: jax.Array, value: jax.Array, slots: jax.Array) -> tuple[jax.Array, jax.Array, KeyValue]:
        """Returns the old keys and values with new ones behind them, and the cache with the new ones in given slots.

        Args:
            key: of the new tokens, `[batch, length, kv_heads, head_dim]`.
            value: of the new tokens, the same shape.
            slots: int32 `[length]`, all different; a token whose slot is beyond the last one is not written.
        """
        new = self._of(key, value)
        written = jax.tree.map(lambda x, y: x.at[..., slots, :].set(y, mode="drop"), self, new)
        pairs = zip(self.read(key.dtype), new.read(key.dtype), strict=True)
        return *(jnp.concatenate(pair, axis=1) for pair in pairs), written._constrained()

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
            return whole.reshape(*(n for n in whole.shape[:2] if n != 1), *x.shape[-2:])

        return jax.tree.map(take, self).replace(shape=(len(rows), self.shape[1]))

    def resized(self, slots: int) -> KeyValue:
        """Returns the cache with so many slots: the first ones, or further empty ones behind them.

        The slots must not have been filled twice, as those of a layer with a window are.
        """

        def resize(x: jax.Array) -> jax.Array:
            room = [(0, 0)] * (x.ndim - 2) + [(0, max(0, slots - x.shape[-2])), (0, 0)]
            return jnp.pad(x[..., :slots, :], room)

        return jax.tree.map(resize, self)._constrained()

    def put(self, row: int | jax.Array, other: KeyValue, ring: bool) -> KeyValue:
        """Returns the cache with the rows from `row` on replaced by those of `other`.

        Args:
            row: the first row to be replaced.
            other: a cache with at most as many slots and rows.
            ring: whether `other` overwrites its oldest slots. A token's slot is then its index modulo the number of
                slots, so both caches must have the same number.

        Raises:
            ValueError: keys are stored in different forms, or the slots do not fit.
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

    def _of(self, key: jax.Array, value: jax.Array) -> KeyValue:
        """Returns keys and values `[batch, length, kv_heads, head_dim]` of new tokens in the stored form."""
        (key, key_scale), (value, value_scale) = self._packed(key), self._packed(value)
        return KeyValue(key, value, key_scale, value_scale, self.shape)

    def _packed(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Returns keys or values `[batch, length, kv_heads, head_dim]` in the stored form, and their scales or None."""
        x = x.swapaxes(1, 2)
        x = x.reshape(*(n for n in self.shape if n != 1), *x.shape[-2:])
        if self.key_scale is None:
            return x.astype(self.key.dtype), None
        x = x.astype(jnp.float32)
        scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
        return jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale

    def _constrained(self) -> KeyValue:
        """Returns the same cache, with the sharding of activations; the slots of a row are split as its positions."""
        names = [name for name, n in zip(_AXES, self.shape, strict=True) if n != 1]
        return jax.tree.map(lambda x: axes.constrain(x, (*names, "act_length", None)), self)

    def _write(self, new: KeyValue, filled: jax.Array | None, ring: bool) -> KeyValue:
        """Returns the cache with `new` written to its next slots."""
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
        """Returns the cache with `new` written to each row from slot `start` (int32 `[batch]`) on.

        Without `ring`, tokens beyond the last slot are dropped; with it, they overwrite the oldest slots.
        """
        length, slots = new.slots, self.slots
        kept = min(length, slots)
        at = start[:, None] + length - kept + jnp.arange(kept)[None]
        at = at % slots if ring else at
        rows = jnp.arange(self.shape[0])[:, None]

        def write(x: jax.Array, y: jax.Array) -> jax.Array:
            # With a slice (the heads) between two index arrays, the indexed dimensions come first: rows, slots, heads.
            heads = (slice(None),) * (x.ndim - 3)
            return x.at[(rows, *heads, at)].set(jnp.moveaxis(y[..., length - kept :, :], -2, 1), mode="drop")

        return jax.tree.map(write, self, new)
