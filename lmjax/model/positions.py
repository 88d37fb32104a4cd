"""How the order of tokens enters: sinusoidal, rotary, T5's bias, ALiBi (learned positions are an `Embed`)."""

import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.model.config import ModelConfig
from lmjax.model.layers import kernel_init
from lmjax.model.parameters import parameter


def sinusoidal(positions: jax.Array, dim: int, halves: bool = False) -> jax.Array:
    """Returns float32 `[..., dim]`: sines in even columns and cosines in odd ones, for positions `[...]`.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5.

    Args:
        positions: where the tokens stand.
        dim: width.
        halves: the sines are the first half of the columns and the cosines the second, as in Marian
            (Junczys-Dowmunt et al. 2018, arXiv:1804.00344) and Pegasus.
    """
    angles = _angles(positions, 10_000.0 ** -(np.arange(0, dim, 2) / dim))
    if halves:
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, dim)


@flax.struct.dataclass
class Rotation:
    """The turns of rotary positions: float32 sines and cosines `[batch or 1, length, rotated / 2]`."""

    sin: jax.Array
    cos: jax.Array

    @classmethod
    def build(
        cls, config: ModelConfig, positions: jax.Array, local: bool = False, length: int | None = None
    ) -> "Rotation":
        """Returns the turns at `[batch or 1, length]` positions, counted from the start of each segment.

        Args:
            config: of the model.
            positions: where the tokens stand.
            local: for a layer with a window, which may have wavelengths of its own.
            length: tokens of the row, which the dynamic scaling depends on; None: as many as there are positions.
        """
        frequencies, factor = rope_frequencies(config, length or positions.shape[-1], local)
        angles = _angles(positions, frequencies)
        return cls(jnp.sin(angles) * factor, jnp.cos(angles) * factor)


def rope(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Returns `x` with each pair of columns (i, i + rotated / 2) turned; columns beyond the rotated ones stay.

    Su et al. 2021, arXiv:2104.09864, section 3.2.2; the pairing is that of GPT-NeoX and Llama checkpoints.

    Args:
        x: queries or keys `[batch, length, heads, head_dim]`.
        rotation: the turns at their positions.
    """
    half = rotation.sin.shape[-1]
    sin, cos = rotation.sin[:, :, None, :], rotation.cos[:, :, None, :]
    first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate([*turned, rest], axis=-1).astype(x.dtype)


def rope_frequencies(config: ModelConfig, length: int, local: bool = False) -> tuple[np.ndarray, float]:
    """Returns float64 `[rotated / 2]`, radians per token, and the factor on sines and cosines.

    The definitions are those of the checkpoints in use (transformers, `modeling_rope_utils`), computed while tracing.

    Args:
        config: of the model.
        length: tokens of the row, which the dynamic scaling depends on.
        local: for a layer with a window.
    """
    rope, dim = config.rope, config.rotated_dim
    exponents = np.arange(0, dim, 2) / dim
    if local and rope.local_theta is not None:
        return rope.local_theta**-exponents, 1.0
    original = config.max_length if rope.original_length is None else rope.original_length
    plain = rope.theta**-exponents
    if rope.scaling == "linear":
        return plain / rope.factor, 1.0
    if rope.scaling == "dynamic":
        stretch = rope.factor * max(length, original) / original - (rope.factor - 1)
        return (rope.theta * stretch ** (dim / (dim - 2))) ** -exponents, 1.0
    if rope.scaling == "yarn":
        # The dimension that makes so many turns in the original length.
        low, high = (
            dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
            for turns in (rope.beta_fast, rope.beta_slow)
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
        slowed = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0, 1)
        factor = 0.1 * math.log(rope.factor) + 1 if rope.attention_factor is None else rope.attention_factor
        return plain * (1 - slowed) + plain / rope.factor * slowed, factor
    if rope.scaling == "llama3":
        turns = original * plain / (2 * math.pi)
        kept = np.clip((turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency), 0, 1)
        return plain * kept + plain / rope.factor * (1 - kept), 1.0
    return plain, 1.0


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Returns float64 `[heads]`: 2**(-8 i / heads), i from 1 (Press et al. 2022, arXiv:2108.12409, section 3).

    Where heads are no power of two, as in the authors' code: the slopes of the power below, then every other one of
    the power above.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    below, above = (2.0 ** (-8 * np.arange(1, n + 1) / n) for n in (power, 2 * power))
    return np.concatenate([below, above[::2][: num_heads - power]])


def alibi(num_heads: int, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns the bias, float32 `[batch or 1, heads, queries, keys]`: minus slope times distance, to either side.

    Args:
        num_heads: query heads.
        queries: their positions, `[batch or 1, queries]`.
        keys: their positions, `[batch or 1, keys]`.
    """
    distance = jnp.abs(keys[:, None, :] - queries[:, :, None]).astype(jnp.float32)
    return -distance[:, None] * jnp.asarray(alibi_slopes(num_heads), jnp.float32)[None, :, None, None]


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


def position_bias(
    config: ModelConfig, kind: str, name: str, *, causal: bool
) -> Callable[[jax.Array, jax.Array | None], jax.Array | None]:
    """Returns a function to the bias on attention scores, `[batch or 1, heads, queries, keys]`; None without one.

    Its arguments are the positions `[batch or 1, queries]`, and those `[batch or 1, keys]` of keys that stand
    elsewhere; None: attention within one row. Made by a compact module, which owns the table if there is one.

    Args:
        config: of the model.
        kind: how the order of tokens enters.
        name: of the table.
        causal: whether only the past is seen.
    """
    if kind == "relative":
        relative = RelativeBias(config, causal, name=name)

    def bias(queries: jax.Array, keys: jax.Array | None = None) -> jax.Array | None:
        length = queries.shape[1]
        if kind == "relative":
            return relative(length, length) if keys is None else relative.between(queries, keys)
        if kind == "alibi":
            places = jnp.arange(length)[None]
            return alibi(config.num_heads, *((places, places) if keys is None else (queries, keys)))
        return None

    return bias


def _angles(positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Returns float32 `[..., frequencies]`: positions times radians per token."""
    frequencies = jnp.asarray(frequencies, jnp.float32)
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
