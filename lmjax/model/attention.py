"""Attention, self and cross: the projections around a kernel, and what a kernel is told of queries and keys."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lmjax.model.config import ModelConfig
from lmjax.model.kernels import Mask, attention
from lmjax.model.layers import Dense, Norm
from lmjax.model.positions import Rotation, rope
from lmjax.parallel import axes


@flax.struct.dataclass
class Relation:
    """What one attention knows of its queries and keys beside their contents.

    Attributes:
        mask: the keys that each query sees.
        bias: on the scores, `[batch or 1, heads, queries, keys]`, or None.
        queries: turns of rotary positions, or None.
        keys: the same for the keys.
    """

    mask: Mask
    bias: jax.Array | None = None
    queries: Rotation | None = None
    keys: Rotation | None = None


class Attention(nn.Module):
    """Multi-head attention of a sequence over itself or over another (Vaswani et al. 2017, section 3.2.2).

    Attributes:
        init_scale: factor on the initial kernel of `out`.
    """

    config: ModelConfig
    init_scale: float | jax.Array = 1.0

    @nn.compact
    def __call__(
        self, x: jax.Array, source: jax.Array, relation: Relation, dropout_rate: jax.Array | None
    ) -> jax.Array:
        """Returns `[batch, length, embed]`.

        Args:
            x: `[batch, length, embed]`: what asks.
            source: `[batch, keys, embed]`: what is asked; in self-attention `x`.
            relation: who sees whom, and from how far.
            dropout_rate: of the attention probabilities; None: no dropout.
        """
        config = self.config
        query_shape, kv_shape = (config.num_heads, config.width_of_head), (config.kv_heads, config.width_of_head)
        query_axes, kv_axes = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        query = Dense(config, query_shape, query_axes, init_scale=config.query_init_scale, name="query")(x)
        key = Dense(config, kv_shape, kv_axes, name="key")(source)
        value = Dense(config, kv_shape, kv_axes, name="value")(source)
        query, key = self._normed("query_norm", query), self._normed("key_norm", key)
        if relation.queries is not None:
            query, key = rope(query, relation.queries), rope(key, relation.keys)
        query, key, value = (
            axes.constrain(y, ("act_batch", "act_length", "act_heads", None)) for y in (query, key, value)
        )
        sinks = None
        if config.sink_logits:
            init = axes.partitioned(nn.initializers.zeros, ("heads",))
            sinks = self.param("sink_logits", init, (config.num_heads,), jnp.dtype(config.param_dtype))
        y = attention(
            query,
            key,
            value,
            mask=relation.mask,
            bias=relation.bias,
            scale=config.score_scale,
            softcap=config.attention_softcap,
            sink_logits=sinks,
            dropout_rate=dropout_rate,
            make_rng=self.make_rng,
            kernel=config.attention_kernel,
        )
        out_axes = ("heads", "head_dim", "embed")
        return Dense(config, (config.embed_dim,), out_axes, init_scale=self.init_scale, name="out")(y)

    def _normed(self, name: str, x: jax.Array) -> jax.Array:
        """Returns queries or keys, normalised if the config says so: over each head, or over all together."""
        if self.config.qk_norm == "none":
            return x
        together = x if self.config.qk_norm == "head" else x.reshape(*x.shape[:2], -1)
        return Norm(self.config, name=name)(together).reshape(x.shape)
