"""T5's relative positions: a learned bias by distance (Raffel et al. 2020, arXiv:1910.10683, section 2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.model.layers import kernel_init
from lmjax.model.parameters import parameter
from lmjax.model.positions.by_distance import ByDistance, toeplitz
from lmjax.model.positions.scheme import Bias, Scheme

if TYPE_CHECKING:
    from lmjax.model.config import ModelConfig


class Relative(Scheme):
    """A learned bias on attention scores, by head and distance."""

    fields: ClassVar[tuple[str, ...]] = ("relative",)

    def per_layer(self, config: ModelConfig) -> bool:
        """Returns whether each layer has its own table."""
        return config.relative.per_layer

    def bias(self, config: ModelConfig, name: str, *, causal: bool) -> Bias:
        """Returns the function from positions to the bias; arguments as of `Scheme.bias`."""
        table = RelativeBias(config, causal, name=name)

        def bias(queries: jax.Array, keys: jax.Array | None = None) -> jax.Array:
            length = queries.shape[1]
            # The distances of a row whose length is symbolic (jax.export) are not known while tracing.
            if keys is None and isinstance(length, int):
                return table(length, length)
            return table.between(queries, queries if keys is None else keys)

        return bias


def relative_bucket(distance: np.ndarray, buckets: int, max_distance: int, causal: bool) -> np.ndarray:
    """Returns the bucket of each distance (key position minus query position), elementwise.

    Raffel et al. 2020, arXiv:1910.10683, section 2.1: half of the buckets have one small distance each, the others
    have ranges that grow logarithmically up to `max_distance`, and all greater distances share the last bucket. A
    causal model uses all buckets for keys before the query; others use the lower half for keys before it and the upper
    half for keys after it. Computed in numpy, because the logarithm of another device could round a distance at a
    boundary into the lower bucket.
    """
    if causal:
        offset, away = 0, np.maximum(-distance, 0)
    else:
        buckets //= 2
        offset, away = np.where(distance > 0, buckets, 0), np.abs(distance)
    exact = buckets // 2
    growth = np.log(np.maximum(away, exact) / exact) / np.log(max_distance / exact)
    far = exact + (growth * (buckets - exact)).astype(np.int32)
    return offset + np.where(away < exact, away, np.minimum(far, buckets - 1))


class RelativeBias(nn.Module):
    """T5's learned bias on attention scores: one scalar for each head and bucket of relative position."""

    config: ModelConfig
    causal: bool

    def setup(self) -> None:
        """Makes the table `[buckets, heads]`."""
        config = self.config
        shape = (config.relative.buckets, config.num_heads)
        # The bias is initialised like a kernel with `embed_dim` inputs, as T5's.
        init = kernel_init(config, round(config.embed_dim / config.width_factor), config.num_heads)
        self.table = parameter(self, "table", init, ("buckets", "heads"), shape, config.param_dtype)

    def __call__(self, query_length: int, key_length: int) -> jax.Array:
        """Returns float32 `[1, heads, query_length, key_length]` for queries and keys of one row.

        Distances are differences of indices in the row. Inside a segment they equal differences of positions, and keys
        of other segments are masked.
        """
        return toeplitz(self._at(np.arange(1 - query_length, key_length)), query_length)[None]

    def by_distance(self, length: int) -> ByDistance:
        """Returns the bias between all positions of a row."""
        return ByDistance(self._at(np.arange(1 - length, length)))

    def between(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Returns float32 `[batch or 1, heads, queries, keys]` for the given positions of queries and keys.

        Args:
            queries: positions `[batch or 1, queries]`.
            keys: positions `[batch or 1, keys]`.
        """
        # All distances from `max_distance` on share a bucket, so that they can be clipped.
        reach = self.config.relative.max_distance
        distance = jnp.clip(keys[:, None, :] - queries[:, :, None], -reach, reach)
        return jnp.moveaxis(jnp.take(self._at(np.arange(-reach, reach + 1)), distance + reach, axis=1), 0, 1)

    def _at(self, distances: np.ndarray) -> jax.Array:
        """Returns the bias at each distance, float32 `[heads, distances]`."""
        relative = self.config.relative
        return self.table.astype(jnp.float32)[
            relative_bucket(distances, relative.buckets, relative.max_distance, self.causal)
        ].T
