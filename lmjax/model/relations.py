"""Mask, bias and rotations of the attentions in a stack, by the positions and segments of its tokens.

All functions are called in a compact method of the module that owns the parameters of the position scheme.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.model.attention import Relation
from lmjax.model.blocks import Blocks
from lmjax.model.cache import Cache
from lmjax.model.config import ModelConfig
from lmjax.model.kernels import Mask
from lmjax.model.parameter_paths import BLOCK_RELATIVE_BIAS, CROSS_RELATIVE_BIAS, RELATIVE_BIAS
from lmjax.model.positions.by_distance import ByDistance


@flax.struct.dataclass
class Sequence:
    """A sequence of vectors with their positions and segments.

    Attributes:
        x: `[batch, length, embed]`; None: the encoder's output, whose keys and values are in the cache already.
        positions: `[batch or 1, length]`, counted from the start of each segment.
        segment_ids: `[batch, length]`, 0 for padding; None: one segment.
        prefix: bool `[batch, length]`, True for tokens that causal order does not hide from earlier tokens; None: no
            such tokens.
    """

    x: jax.Array | None
    positions: jax.Array
    segment_ids: jax.Array | None = None
    prefix: jax.Array | None = None


# As `Bias`, with blocks whose keys come before the given ones, or None.
BlocksBias = Callable[[jax.Array, jax.Array | None, Blocks | None], jax.Array | ByDistance | None]


def self_bias(config: ModelConfig, causal: bool) -> BlocksBias:
    """Returns the function that makes the bias of self-attention.

    Distances to the keys of blocks are counted in blocks, and have a table of their own, as in LongT5.
    """
    scheme = config.scheme(causal)
    tokens = scheme.bias(config, RELATIVE_BIAS, causal=causal)

    def bias(
        queries: jax.Array, keys: jax.Array | None = None, blocks: Blocks | None = None
    ) -> jax.Array | ByDistance | None:
        found = tokens(queries, keys)
        if blocks is None or found is None:
            return found
        return blocks.before(scheme.bias(config, BLOCK_RELATIVE_BIAS, causal=False)(blocks.own, blocks.numbers), found)

    return bias


def _no_bias(queries: jax.Array, keys: jax.Array | None = None, blocks: Blocks | None = None) -> None:
    """Returns None: used where each layer makes its own bias."""


def self_relations(
    config: ModelConfig, causal: bool, sequence: Sequence, cache: Cache | None, extended: Cache | None
) -> tuple[Relation | None, Relation | None]:
    """Returns mask, bias and rotations of self-attention, for layers without a window and for layers with one.

    The first is None if all layers have a window, the second if no layer has one.

    Args:
        config: of the model.
        causal: whether it is a decoder's.
        sequence: the new tokens.
        cache: the tokens read before; None: no cache.
        extended: the cache with positions and segments of the new tokens added.
    """
    attention, scheme = config.side_attention(causal), config.scheme(causal)
    positions, segment_ids = sequence.positions, sequence.segment_ids
    bias = _no_bias if scheme.per_layer(config) else self_bias(config, causal)
    # The dynamic scaling of rotary positions depends on the row's length. Keys in the cache are stored rotated and
    # cannot change with it, so with a cache the frequencies are those of a short row (see `Rope.limit`).
    length = None if cache is None else 1
    if attention.global_block:
        length = positions.shape[1]

    def relation(window: int | None, slots: int) -> Relation:
        turns = functools.partial(scheme.turns, config, local=window is not None, length=length)
        if cache is not None and cache.slots is not None:
            return cache.relation(bias, turns)
        first = positions < attention.global_tokens if attention.global_tokens else None
        mask = Mask(
            causal=causal,
            window=window,
            sink_tokens=attention.sink_tokens,
            query_segments=segment_ids,
            key_segments=segment_ids,
            prefix=sequence.prefix if causal else None,
            key_positions=positions if attention.sink_tokens else None,
            global_keys=first,
            global_queries=first,
        )
        keys = positions
        if cache is not None and cache.filled is not None:
            keys, segments = extended.positions_and_segments(slots, positions.shape[1])
            queries = jnp.ones(sequence.x.shape[:2], jnp.int32) if segment_ids is None else segment_ids
            mask = mask.replace(
                query_segments=queries, key_segments=segments, query_positions=positions, key_positions=keys
            )
        blocks = None
        if window is not None and attention.global_block:
            blocks = Blocks.of(positions, segment_ids, attention.global_block, len(sequence.x))
            mask, keys = blocks.shown(mask), blocks.keys(positions)
        turned = turns(positions)
        late = blocks is not None or (cache is not None and cache.late)
        biased = bias(positions, mask.cached_positions, blocks)
        return Relation(mask, biased, turned, turns(keys) if late else turned, blocks)

    window, slots = attention.window, 0 if cache is None else cache.capacity
    if window is None:
        return relation(None, slots), None
    everywhere = relation(None, slots) if attention.global_every else None
    ring = slots if cache is None else min(layer["attention"].slots for layer in cache.layers)
    return everywhere, relation(window, ring)


def cross_bias(config: ModelConfig, positions: jax.Array, memory: jax.Array) -> jax.Array | None:
    """Returns the bias of cross-attention, from positions of queries and of the encoder's output."""
    return config.cross_scheme.bias(config, CROSS_RELATIVE_BIAS, causal=False)(positions, memory)


def cross_relation(config: ModelConfig, sequence: Sequence, memory: Sequence) -> Relation:
    """Returns mask, bias (None if each layer makes its own) and rotations of cross-attention, for all layers."""
    scheme, bias = config.cross_scheme, None
    if not scheme.per_layer(config):
        bias = cross_bias(config, sequence.positions, memory.positions)
    turns, key_turns = (scheme.turns(config, side.positions) for side in (sequence, memory))
    return Relation(Mask(query_segments=sequence.segment_ids, key_segments=memory.segment_ids), bias, turns, key_turns)
