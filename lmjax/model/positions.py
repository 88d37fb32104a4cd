"""How the order of tokens enters: sinusoidal, rotary, and T5's relative bias (learned positions are an `Embed`)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.model.config import ModelConfig
from lmjax.parallel import axes


def sinusoidal(positions: jax.Array, dim: int) -> jax.Array:
    """Returns float32 `[..., dim]`: sines in even columns and cosines in odd ones, for positions `[...]`.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    angles = _angles(positions, dim, 10_000.0)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, dim)


def rope(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Returns `x` with each pair of columns (i, i + head_dim / 2) rotated by position * theta**(-2i / head_dim).

    Su et al. 2021, arXiv:2104.09864, section 3.2.2; the pairing is that of GPT-NeoX and Llama checkpoints.

    Args:
        x: queries or keys `[batch, length, heads, head_dim]`.
        positions: `[batch or 1, length]`, counted from the start of each segment.
        theta: base of the wavelengths.
    """
    angles = _angles(positions, x.shape[-1], theta)[:, :, None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


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

    @nn.compact
    def __call__(self, query_length: int, key_length: int) -> jax.Array:
        """Returns float32 `[1, heads, query_length, key_length]`.

        Distances are those of the row: positions advance by one inside a segment, and the mask hides the rest.
        """
        config = self.config
        std = config.embed_dim**-0.5 if config.initializer == "fan_in" else config.init_std
        init = axes.partitioned(nn.initializers.normal(std), ("buckets", "heads"))
        shape = (config.relative_buckets, config.num_heads)
        table = self.param("table", init, shape, jnp.dtype(config.param_dtype)).astype(jnp.float32)
        distances = np.arange(1 - query_length, key_length)
        bucket = relative_bucket(distances, config.relative_buckets, config.relative_max_distance, self.causal)
        return _toeplitz(table[bucket].T, query_length)[None]


def _angles(positions: jax.Array, dim: int, theta: float) -> jax.Array:
    """Returns float32 `[..., dim / 2]`: positions over wavelengths that grow from 1 to nearly `theta`."""
    frequencies = theta ** -(jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    return positions[..., None].astype(jnp.float32) * jax.lax.expand_dims(frequencies, range(positions.ndim))


def _toeplitz(values: jax.Array, rows: int) -> jax.Array:
    """Returns `[heads, rows, columns]` with element (i, j) = values[:, j - i + rows - 1].

    By copies alone: a row longer than the padded values by one shifts each next row by one. A gather of all pairs
    would have a scatter for its gradient, which is slow everywhere.
    """
    heads, count = values.shape
    padded = jnp.pad(values, ((0, 0), (0, 1)))
    tiled = jnp.broadcast_to(padded[:, None], (heads, rows, count + 1)).reshape(heads, rows * (count + 1))
    return tiled[:, : rows * count].reshape(heads, rows, count)[:, :, rows - 1 :]
