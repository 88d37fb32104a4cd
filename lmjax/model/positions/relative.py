"""T5's relative positions: a learned bias by distance (Raffel et al. 2020, arXiv:1910.10683, section 2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.model.layers import kernel_init
from lmjax.model.parameters import parameter
from lmjax.model.positions.scheme import Bias, Scheme

if TYPE_CHECKING:
    from lmjax.model.config import ModelConfig


class Relative(Scheme):
    """A learned bias on attention scores."""

    fields: ClassVar[tuple[str, ...]] = ("relative",)

    def per_layer(self, config: ModelConfig) -> bool:
        """Returns whether each layer has a table of its own."""
        return config.relative.per_layer

    def bias(self, config: ModelConfig, name: str, *, causal: bool) -> Bias:
        """Returns a function to the bias."""
        table = RelativeBias(config, causal, name=name)

        def bias(queries: jax.Array, keys: jax.Array | None = None) -> jax.Array:
            length = queries.shape[1]
            return table(length, length) if keys is None else table.between(queries, keys)

        return bias


def relative_bucket(distance: np.ndarray, buckets: int, max_distance: int, causal: bool) -> np.ndarray:
    """Returns the bucket of each distance (key minus query), elementwise.

    Raffel et al. 2020, arXiv:1910.10683, section 2.1: half of the buckets hold one small distance each, the others
    grow logarithmically up to `max_distance`, and all that is farther shares the last. A causal model spends every
    bucket on the past; another one spends the lower half of them on the past and the upper half on the future.
    In numpy: a device's own logarithm could put a distance on a boundary into the bucket below.
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
        # A score is a sum over the width, and its bias is as large as one of T5's kernels.
        init = kernel_init(config, config.embed_dim, config.num_heads)
        self.table = parameter(self, "table", init, ("buckets", "heads"), shape, config.param_dtype)

    def __call__(self, query_length: int, key_length: int) -> jax.Array:
        """Returns float32 `[1, heads, query_length, key_length]` for the places of one row.

        Distances are those of the row: positions advance by one inside a segment, and the mask hides the rest.
        """
        return _toeplitz(self._at(np.arange(1 - query_length, key_length)), query_length)[None]

    def between(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Returns float32 `[batch or 1, heads, queries, keys]` for positions in two different sequences."""
        # All that is farther shares a bucket.
        reach = self.config.relative.max_distance
        distance = jnp.clip(keys[:, None, :] - queries[:, :, None], -reach, reach)
        return jnp.moveaxis(jnp.take(self._at(np.arange(-reach, reach + 1)), distance + reach, axis=1), 0, 1)

    def _at(self, distances: np.ndarray) -> jax.Array:
        """Returns float32 `[heads, distances]`."""
        relative = self.config.relative
        return self.table.astype(jnp.float32)[
            relative_bucket(distances, relative.buckets, relative.max_distance, self.causal)
        ].T


def _toeplitz(values: jax.Array, rows: int) -> jax.Array:
    """Returns `[heads, rows, columns]` with element (i, j) = values[:, j - i + rows - 1].

    By copies alone: a row longer than the padded values by one shifts each next row by one. A gather of all pairs
    would have a scatter for its gradient, which is slow everywhere.
    """
    heads, count = values.shape
    padded = jnp.pad(values, ((0, 0), (0, 1)))
    tiled = jnp.broadcast_to(padded[:, None], (heads, rows, count + 1)).reshape(heads, rows * (count + 1))
    return tiled[:, : rows * count].reshape(heads, rows, count)[:, :, rows - 1 :]
