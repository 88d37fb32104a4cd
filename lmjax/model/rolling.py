"""A cache of constant size for texts of any length: the first tokens, and the last ones (StreamingLLM).

Xiao et al. 2024, arXiv:2309.17453, section 3.2: the first tokens get much attention whatever they are ("attention
sinks"), so a window without them fails; with them, models write texts far longer than their rows. Positions are those
in the cache, not in the text: they never exceed the number of slots. So keys are stored without their rotation, and all
of them are rotated at each token.
"""

from __future__ import annotations

from typing import Self

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.model.config import ModelConfig
from lmjax.model.key_value import CacheType, KeyValue


@flax.struct.dataclass
class RollingCache:
    """The keys and values of the first `sinks` tokens and of the last ones; one token is added at a time.

    It has the attributes of `lmjax.model.cache.Cache` that a decoder reads.

    Attributes:
        layers: keys and values of every layer, by the name of its attention.
        filled: int32 scalar, the number of tokens that were read, kept or not.
        sinks: number of first tokens that are kept.
        late: keys are rotated after they are read from the cache.
    """

    layers: tuple[dict[str, KeyValue], ...]
    filled: jax.Array
    sinks: int = flax.struct.field(pytree_node=False, default=0)
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
    def position(self) -> jax.Array:
        """Returns the position of the next token, int32: that in the cache."""
        return jnp.minimum(self.filled, self.capacity - 1)

    @property
    def start(self) -> jax.Array:
        """Returns the slot of the next token: a free one, or that of the oldest token that is no sink."""
        window = self.capacity - self.sinks
        return jnp.where(self.filled < self.sinks, self.filled, self.sinks + (self.filled - self.sinks) % window)

    def extend(self, positions: jax.Array, segment_ids: jax.Array | None) -> Self:
        """Returns the cache with one more token counted; keys and values are written by the layers."""
        assert positions.shape[1] == 1, "a rolling cache takes one token at a time"
        return self.replace(filled=self.filled + 1)

    def positions_and_segments(self, slots: int, length: int) -> tuple[jax.Array, jax.Array]:
        """Returns positions and segments `[1, slots]` of the keys, after the new token was counted."""
        slot, window = jnp.arange(self.capacity), self.capacity - self.sinks
        # The last token is in the slot before the next one; the older a token, the lower its position.
        age = (self.start - 1 - slot) % window
        recent = self.capacity - 1 - age
        moved = (self.filled > self.capacity) & (slot >= self.sinks)
        positions = jnp.where(moved, recent, slot)
        return positions[None], (slot < self.filled).astype(jnp.int32)[None]
