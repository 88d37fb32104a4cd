"""Self-attention and cross-attention: the projections around a kernel, and the arguments that the kernel gets."""

from typing import NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lmjax import axes
from lmjax.model.blocks import Blocks
from lmjax.model.config import ModelConfig
from lmjax.model.kernels import Mask, attention
from lmjax.model.key_value import KeyValue
from lmjax.model.layers import Dense, Norm
from lmjax.model.parameters import parameter
from lmjax.model.positions.by_distance import ByDistance
from lmjax.model.positions.scheme import Turns

_AXES = ("act_batch", "act_length", "act_heads", None)


@flax.struct.dataclass
class Relation:
    """Mask, bias and rotations of one attention: all that depends on positions and segments, not on contents.

    Attributes:
        mask: which keys each query may attend to.
        bias: added to the scores, `[batch or 1, heads, queries, keys]`, or by distance; None: nothing.
        queries: how the queries are changed by their positions; None: not at all.
        keys: the same for the keys.
        blocks: blocks of tokens that are keys too, before those of the tokens; None: there are no such keys.
    """

    mask: Mask
    bias: jax.Array | ByDistance | None = None
    queries: Turns | None = None
    keys: Turns | None = None
    blocks: Blocks | None = None


class Cached(NamedTuple):
    """The cache of one attention, and how many of its slots are filled.

    Attributes:
        cache: keys and values.
        filled: slots written before, a scalar for all rows or int32 `[batch]`; None: no slot is written yet.
        capacity: slots of a layer without a window.
        late: keys are stored as they are, and changed by their positions after they are read from the cache.
        slots: int32 `[length]`, the slots of the new tokens; None: those after the filled ones.
    """

    cache: KeyValue
    filled: jax.Array | None
    capacity: int
    late: bool = False
    slots: jax.Array | None = None

    def extend(self, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array, KeyValue]:
        """Returns keys and values to attend to, and the cache with new ones added, as `KeyValue.extend` does."""
        if self.slots is not None:
            return self.cache.overwrite(key, value, self.slots)
        return self.cache.extend(key, value, self.filled, self.capacity)


class Attention(nn.Module):
    """Multi-head attention of a sequence over itself or over another (Vaswani et al. 2017, section 3.2.2).

    Attributes:
        init_scale: factor on the initial kernel of `out`.
    """

    config: ModelConfig
    init_scale: float | jax.Array = 1.0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        source: jax.Array | None,
        relation: Relation,
        dropout_rate: jax.Array | None,
        cache: Cached | None = None,
    ) -> tuple[jax.Array, KeyValue | None]:
        """Returns `[batch, length, embed]`, and the cache with the keys and values of `source` added (None: no cache).

        Args:
            x: `[batch, length, embed]`, from which the queries are computed.
            source: `[batch, keys, embed]`, from which keys and values are computed; `x` in self-attention. None: keys
                and values are read from the cache alone.
            relation: the mask, the bias and the rotations.
            dropout_rate: of the attention probabilities; None: no dropout.
            cache: the keys and values read before; None: no cache.
        """
        config = self.config
        query_shape, kv_shape = (config.num_heads, config.width_of_head), (config.kv_heads, config.width_of_head)
        query_axes, kv_axes = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        query = Dense(config, query_shape, query_axes, init_scale=config.query_init_scale, name="query")(x)
        query = self._normed("query_norm", query)
        if relation.queries is not None:
            query = relation.queries.turn(query)
        query = axes.constrain(query, _AXES)
        if source is None:
            extended = cache.cache
            key, value = extended.read(query.dtype)
        else:
            if relation.blocks is not None:
                sums = Norm(config, name="block_norm")(relation.blocks.sums(source))
                source = jnp.concatenate([sums, source], axis=1)
            key = self._normed("key_norm", Dense(config, kv_shape, kv_axes, name="key")(source))
            value = Dense(config, kv_shape, kv_axes, name="value")(source)
            late = cache is not None and cache.late
            if relation.keys is not None and not late:
                key = relation.keys.turn(key)
            key, value = (axes.constrain(y, _AXES) for y in (key, value))
            extended = None
            if cache is not None:
                key, value, extended = cache.extend(key, value)
            if relation.keys is not None and late:
                key = relation.keys.turn(key)
        sinks = None
        if config.attention.sink_logits:
            shape = (config.num_heads,)
            sinks = parameter(self, "sink_logits", nn.initializers.zeros, ("heads",), shape, config.param_dtype)
        y = self.weigh(query, key, value, relation, sinks, dropout_rate)
        out_axes = ("heads", "head_dim", "embed")
        return Dense(config, (config.embed_dim,), out_axes, init_scale=self.init_scale, name="out")(y), extended

    def weigh(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        relation: Relation,
        sink_logits: jax.Array | None,
        dropout_rate: jax.Array | None,
    ) -> jax.Array:
        """Returns `[batch, queries, heads, head_dim]`, the values weighted by the attention probabilities.

        This is a separate method so that `lmjax.model.intercept` can read the queries and keys given to a kernel.
        """
        config = self.config
        return attention(
            query,
            key,
            value,
            mask=relation.mask,
            bias=relation.bias,
            scale=config.score_scale,
            softcap=config.attention.softcap,
            sink_logits=sink_logits,
            dropout_rate=dropout_rate,
            make_rng=self.make_rng,
            kernel=config.attention.kernel,
        )

    def _normed(self, name: str, x: jax.Array) -> jax.Array:
        """Returns queries or keys `x`, normalised per head, over all heads or not, according to `attention.qk_norm`."""
        if self.config.attention.qk_norm == "none":
            return x
        together = x if self.config.attention.qk_norm == "head" else x.reshape(*x.shape[:2], -1)
        return Norm(self.config, name=name)(together).reshape(x.shape)
