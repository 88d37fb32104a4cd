"""A cache of constant size for texts of any length: the first tokens, and the last ones (StreamingLLM).

Xiao et al. 2024, arXiv:2309.17453, section 3.2: the first tokens get much attention whatever they are ("attention
sinks"), so a window without them fails; with them, models write texts far longer than their rows. Positions are those
in the cache, not in the text: they never exceed the number of slots. So keys are stored without their rotation, and all
of them are rotated at each token.

A prompt is read many tokens at a time, with the same result: each query sees the keys of the first tokens at another
distance than in the text, and its own window's keys at the distance in the text (`Twofold`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.model.attention import Relation
from lmjax.model.config import ModelConfig
from lmjax.model.kernels import Mask
from lmjax.model.key_value import CacheType, KeyValue
from lmjax.model.positions.scheme import Bias, Turns


@flax.struct.dataclass
class RollingCache:
    """The keys and values of the first `sinks` tokens and of the last ones.

    It has the attributes of `lmjax.model.cache.Cache` that a decoder reads.

    Attributes:
        layers: keys and values of every layer, by the name of its attention.
        filled: int32 scalar, the number of tokens that were read, kept or not.
        sinks: number of first tokens that are kept.
        slots: int32 `[length]`, the slots of new tokens while they are read, after `aimed`; None: one token is read.
        late: keys are rotated after they are read from the cache.
    """

    layers: tuple[dict[str, KeyValue], ...]
    filled: jax.Array
    sinks: int = flax.struct.field(pytree_node=False, default=0)
    slots: jax.Array | None = None
    late: bool = flax.struct.field(pytree_node=False, default=True)
    # There is no encoder.
    memory_positions: None = None

    @classmethod
    def empty(cls, config: ModelConfig, sinks: int, window: int, kind: CacheType = "compute") -> Self:
        """Returns an empty cache for one row.

        Args:
            config: of a decoder.
            sinks: number of first tokens that are kept.
            window: number of last tokens that are kept.
            kind: of the cache.
        """

        def make() -> KeyValue:
            return KeyValue.zeros((1, config.kv_heads), sinks + window, config.width_of_head, config.dtype, kind)

        layers = tuple({"attention": make()} for _ in range(config.side_layers(True)))
        return cls(layers, jnp.int32(0), sinks)

    @property
    def capacity(self) -> int:
        """Returns the number of slots."""
        return self.layers[0]["attention"].slots

    @property
    def window(self) -> int:
        """Returns the number of slots of last tokens."""
        return self.capacity - self.sinks

    @property
    def position(self) -> jax.Array:
        """Returns the position of the next token, int32: that in the cache."""
        return self.positions_of(self.filled)

    def positions_of(self, numbers: jax.Array) -> jax.Array:
        """Returns the position of each token in the cache when it is the newest one, by its place in the text."""
        return jnp.minimum(numbers, self.capacity - 1)

    @property
    def start(self) -> jax.Array:
        """Returns the slot of the next token: a free one, or that of the oldest token that is no sink."""
        return self._slot(self.filled)

    def _slot(self, number: jax.Array) -> jax.Array:
        """Returns the slots of tokens by their place in the text."""
        return jnp.where(number < self.sinks, number, self.sinks + (number - self.sinks) % self.window)

    def aimed(self, length: int, segment_ids: jax.Array | None) -> Self:
        """Returns the cache as it reads new tokens, of which those of segment 0 are padding at the end.

        Args:
            length: number of new tokens, at most the window.
            segment_ids: `[1, length]`; None: there is no padding.
        """
        if length == 1:
            return self
        assert length <= self.window, "new tokens would overwrite each other"
        slots = self._slot(self.filled + jnp.arange(length))
        return self.replace(slots=slots if segment_ids is None else jnp.where(segment_ids[0] > 0, slots, self.capacity))

    def extend(self, positions: jax.Array, segment_ids: jax.Array | None) -> Self:
        """Returns the cache with new tokens counted; keys and values are written by the layers."""
        count = positions.shape[1] if segment_ids is None else jnp.sum(segment_ids > 0, dtype=jnp.int32)
        return self.replace(filled=self.filled + count, slots=None)

    def positions_and_segments(self, slots: int, length: int) -> tuple[jax.Array, jax.Array]:
        """Returns positions and segments `[1, slots]` of the keys, after the new token was counted."""
        slot = jnp.arange(self.capacity)
        # The last token is in the slot before the next one; the older a token, the lower its position.
        age = (self.start - 1 - slot) % self.window
        recent = self.capacity - 1 - age
        moved = (self.filled > self.capacity) & (slot >= self.sinks)
        positions = jnp.where(moved, recent, slot)
        return positions[None], (slot < self.filled).astype(jnp.int32)[None]

    def relation(self, bias: Bias, turns: Callable[[jax.Array], Turns | None]) -> Relation:
        """Returns mask, bias and rotations between new tokens and the keys in the slots before them and of their own.

        Args:
            bias: from positions of queries and keys to the bias on scores, as of `Scheme.bias`.
            turns: from positions to rotations, as of `Scheme.turns`.
        """
        slot, last = jnp.arange(self.capacity), self.filled - 1
        kept = jnp.where(slot < self.sinks, slot, last - (last - slot) % self.window)
        new = self.filled + jnp.arange(len(self.slots))
        numbers, real = jnp.concatenate([kept, new]), self.slots < self.capacity
        segments = jnp.concatenate([(slot <= kept) & (kept <= last), real]).astype(jnp.int32)[None]
        mask = Mask(
            causal=True,
            window=self.window,
            sink_tokens=self.sinks,
            query_segments=segments[:, self.capacity :],
            key_segments=segments,
            key_positions=numbers[None],
            query_positions=new[None],
        )
        # Distances alone matter within the window. Small positions keep the angles of rotations exact.
        near = jnp.maximum(numbers - self.filled + self.window, 0)[None]
        far, first = self.positions_of(new)[None], numbers < self.sinks
        sides = [(near[:, self.capacity :], near), (far, numbers[None])]
        added = [bias(*side) for side in sides]
        queries, keys = zip(*((turns(x), turns(y)) for x, y in sides), strict=True)
        return Relation(
            mask,
            None if added[0] is None else jnp.where(first, added[1], added[0]),
            None if queries[0] is None else Twofold(*queries),
            None if keys[0] is None else Twofold(*keys, first),
        )


@flax.struct.dataclass
class Twofold:
    """Rotations with which a query has one distance to the first keys of a text, and another one to all others.

    Queries and keys have twice as many dimensions, half of them for each distance; a key is zero in one half.

    Attributes:
        near: the rotations in the first half.
        far: the rotations in the second half.
        first: bool `[keys]`, the keys that the second half is for; None: of queries.
    """

    near: Turns
    far: Turns
    first: jax.Array | None = None

    def turn(self, x: jax.Array) -> jax.Array:
        """Returns queries or keys `[batch, length, heads, 2 head_dim]`, changed by their positions."""
        near, far = self.near.turn(x), self.far.turn(x)
        if self.first is not None:
            first = self.first[:, None, None]
            near, far = jnp.where(first, 0, near), jnp.where(first, far, 0)
        return jnp.concatenate([near, far], axis=-1)


def reads_many(config: ModelConfig, capacity: int) -> bool:
    """Returns whether `RollingCache.relation` holds for a decoder.

    No layer may have a bias of its own, or a window that hides keys in the cache, where distances are below `capacity`.
    """
    window = config.attention.window
    return (window is None or window >= capacity) and not config.scheme(True).per_layer(config)
