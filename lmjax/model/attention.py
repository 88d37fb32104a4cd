"""Attention, self and cross: who may see whom, the kernel, and the projections around it."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.config import ModelConfig
from lmjax.model.layers import Dense, dropout
from lmjax.model.positions import rope
from lmjax.parallel import axes


def attention_mask(
    query_length: int,
    key_length: int,
    *,
    causal: bool,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
) -> jax.Array | None:
    """Returns booleans `[batch or 1, 1, query_length, key_length]`, True where a query may see a key.

    None when there is nothing to mask. A token sees its own segment alone, so that packed documents are strangers;
    padding is segment 0, and sees padding. Causal order is that of the row, which inside a segment is that of
    the positions.

    Args:
        query_length: queries in a row.
        key_length: keys in a row.
        causal: whether a query sees only keys at or before its own place.
        query_segments: `[batch, query_length]`; None: the whole row is segment 1.
        key_segments: `[batch, key_length]`; None: the whole row is segment 1.
    """
    mask = None
    if causal:
        mask = (jnp.arange(query_length)[:, None] >= jnp.arange(key_length)[None, :])[None, None]
    if query_segments is not None or key_segments is not None:
        query_segments = jnp.ones((1, query_length), jnp.int32) if query_segments is None else query_segments
        key_segments = jnp.ones((1, key_length), jnp.int32) if key_segments is None else key_segments
        same = query_segments[:, None, :, None] == key_segments[:, None, None, :]
        mask = same if mask is None else mask & same
    return mask


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    scale: float,
    bias: jax.Array | None,
    mask: jax.Array | None,
    dropout_rate: jax.Array | None,
    make_rng: Callable[[str], jax.Array],
) -> jax.Array:
    """Returns `[batch, queries, heads, head_dim]`: values weighted by a softmax, in float32, of scaled scores.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1; with fewer key than query heads, each group of query heads
    shares one (Ainslie et al. 2023, arXiv:2305.13245, section 2.2). A query that may see no key at all gets zeros.

    Args:
        query: `[batch, queries, heads, head_dim]`.
        key: `[batch, keys, kv_heads, head_dim]`.
        value: `[batch, keys, kv_heads, head_dim]`.
        scale: factor on the scores.
        bias: float32 `[1, heads, queries, keys]`, added to the scores; None: nothing.
        mask: `[batch or 1, 1, queries, keys]`, True where a query may see a key; None: everywhere.
        dropout_rate: of the probabilities; None: no dropout.
        make_rng: the calling module's own `make_rng`.
    """
    groups = query.shape[2] // key.shape[2]
    if groups > 1:
        key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        scores += bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = dropout(weights, dropout_rate, make_rng)
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    if mask is not None:
        # The softmax of a query with nothing to see is uniform, and would mix in every other document.
        y = jnp.where(jnp.any(mask, axis=-1).swapaxes(1, 2)[..., None], y, 0)
    return y


class Attention(nn.Module):
    """Multi-head attention of a sequence over itself or over another (Vaswani et al. 2017, section 3.2.2)."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None = None,
        *,
        positions: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array | None,
        dropout_rate: jax.Array | None,
    ) -> jax.Array:
        """Returns `[batch, length, embed]`.

        Args:
            x: `[batch, length, embed]`: what asks.
            memory: `[batch, keys, embed]`: what is asked, for cross-attention; None: `x` itself.
            positions: `[batch or 1, length]`, for rotary positions; cross-attention has none.
            bias: of `dot_product_attention`.
            mask: of `dot_product_attention`.
            dropout_rate: of the attention probabilities; None: no dropout.
        """
        config = self.config
        source = x if memory is None else memory
        query_shape, kv_shape = (config.num_heads, config.width_of_head), (config.kv_heads, config.width_of_head)
        query_axes, kv_axes = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        query = Dense(config, query_shape, query_axes, init_scale=config.query_init_scale, name="query")(x)
        key = Dense(config, kv_shape, kv_axes, name="key")(source)
        value = Dense(config, kv_shape, kv_axes, name="value")(source)
        if config.positions == "rope" and memory is None:
            query, key = (rope(y, positions, config.rope_theta) for y in (query, key))
        query, key, value = (
            axes.constrain(y, ("act_batch", "act_length", "act_heads", None)) for y in (query, key, value)
        )
        scale = config.width_of_head**-0.5 if config.attention_scale else 1.0
        y = dot_product_attention(
            query, key, value, scale=scale, bias=bias, mask=mask, dropout_rate=dropout_rate, make_rng=self.make_rng
        )
        out_axes, out_scale = ("heads", "head_dim", "embed"), config.residual_init_scale
        return Dense(config, (config.embed_dim,), out_axes, init_scale=out_scale, name="out")(y)
