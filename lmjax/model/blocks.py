"""Transient global attention: sums of blocks of tokens, which all tokens of their segment attend to.

Guo et al. 2022, arXiv:2112.07916 (LongT5), section 3.1.2. The blocks are made anew in each layer, of the states that
its attention reads, and are keys and values alone.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lmjax import axes
from lmjax.errors import FlagError
from lmjax.model.kernels import Mask


@flax.struct.dataclass
class Blocks:
    """The blocks of the segments of each row, in their order.

    A segment has as many blocks as fit in it; the tokens behind the last whole block belong to it too, as in the
    authors' code. A segment shorter than a block has none. So a row has room for all blocks of its segments, however
    they are packed.

    Attributes:
        size: tokens of a block.
        member: bool `[batch, length, blocks]`, whether a token is in a block.
        segments: int32 `[batch, blocks]`, the segment of a block; -1: there is no such block.
        numbers: int32 `[batch, blocks]`, the place of a block in its segment, from 0.
        own: int32 `[batch, length]`, the number of a token's block.
    """

    member: jax.Array
    segments: jax.Array
    numbers: jax.Array
    own: jax.Array
    size: int = flax.struct.field(pytree_node=False, default=1)

    @classmethod
    def of(cls, positions: jax.Array, segment_ids: jax.Array | None, size: int, batch: int) -> Blocks:
        """Returns the blocks of some rows.

        Args:
            positions: `[batch or 1, length]`, counted from the start of each segment.
            segment_ids: `[batch, length]`, 0 for padding; None: one segment.
            size: tokens of a block.
            batch: number of rows.

        Raises:
            FlagError: the mesh splits rows.
        """
        if axes.sequence_ways() > 1:
            raise FlagError(
                f"--config.model.attention.global_block={size}: the keys of blocks cannot be split over"
                " --config.parallel.sequence; leave one of them out"
            )
        length = positions.shape[1]
        positions = jnp.broadcast_to(positions, (batch, length))
        segment_ids = jnp.ones((batch, length), jnp.int32) if segment_ids is None else segment_ids
        ends = ((positions % size == size - 1) & (segment_ids > 0)).astype(jnp.int32)
        ended = jnp.cumsum(ends, axis=1)
        block = jnp.arange(length // size, dtype=jnp.int32)
        # The token with which block i of the row ends is the first one until which i + 1 blocks have ended.
        last = jax.vmap(lambda row: jnp.searchsorted(row, block + 1))(ended)
        there, last = last < length, jnp.minimum(last, length - 1)
        segments = jnp.where(there, jnp.take_along_axis(segment_ids, last, axis=1), -1)
        numbers = jnp.take_along_axis(positions, last, axis=1) // size
        final = segments != jnp.pad(segments[:, 1:], ((0, 0), (0, 1)), constant_values=-2)
        before = (ended - ends)[:, :, None]
        place = block[None, None]
        inside = (before == place) | (final[:, None] & (before == place + 1))
        member = inside & (segment_ids[:, :, None] == segments[:, None])
        own = jnp.sum(jnp.where(member, numbers[:, None], 0), axis=2)
        return cls(member, segments, numbers, own, size)

    def sums(self, x: jax.Array) -> jax.Array:
        """Returns `[batch, blocks, embed]`, the sum of the states `x` `[batch, length, embed]` in each block."""
        member = self.member.astype(x.dtype)
        return jnp.einsum("blm,ble->bme", member, x, preferred_element_type=jnp.float32).astype(x.dtype)

    def before(self, ours: jax.Array, others: jax.Array) -> jax.Array:
        """Returns scores of blocks with those of tokens behind them, along the keys; each `[batch or 1, ..., keys]`."""
        batch = max(len(ours), len(others))
        both = (jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in (ours, others))
        return jnp.concatenate(list(both), axis=-1)

    def keys(self, positions: jax.Array) -> jax.Array:
        """Returns the positions of all keys: those of blocks in their middle, then those of tokens."""
        return self.before(self.numbers * self.size + self.size // 2, positions)

    def shown(self, mask: Mask) -> Mask:
        """Returns the mask of tokens with the keys of blocks before theirs, which each token of their segment sees."""
        batch, length = self.own.shape
        segments = jnp.ones((batch, length), jnp.int32) if mask.query_segments is None else mask.query_segments
        names = ("key_positions", "global_keys")
        others = {name: x for name in names if (x := getattr(mask, name)) is not None}
        return mask.replace(
            query_segments=segments,
            key_segments=self.before(self.segments, segments),
            leading=self.numbers.shape[1],
            **{name: self.before(jnp.zeros((1, self.numbers.shape[1]), x.dtype), x) for name, x in others.items()},
        )
