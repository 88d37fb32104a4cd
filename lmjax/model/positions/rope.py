"""Rotary positions: queries and keys are turned (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.model.positions.angles import angles
from lmjax.model.positions.scheme import Scheme

if TYPE_CHECKING:
    from lmjax.model.config import ModelConfig


class Rope(Scheme):
    """Turns of pairs of columns of queries and keys."""

    fields: ClassVar[tuple[str, ...]] = ("rope",)

    def problems(self, config: ModelConfig, used: bool) -> tuple[tuple[bool, str], ...]:
        """Returns the rules on what rotates and on its scaling."""
        rope = config.rope
        return (
            (
                used and (config.rotated_dim % 2 != 0 or config.rotated_dim == 0),
                f"positions=rope rotates pairs: rope.fraction={rope.fraction} of head_dim={config.width_of_head} is"
                f" {config.rotated_dim}; make it even",
            ),
            (
                rope.scaling == "dynamic" and config.rotated_dim < 4,
                f"rope.scaling=dynamic needs four dimensions that rotate, and there are {config.rotated_dim}; use"
                " wider heads",
            ),
            (
                rope.local_theta is not None and config.attention.window is None,
                f"rope.local_theta={rope.local_theta} is for layers with a window; set attention.window",
            ),
        )

    def limit(self, config: ModelConfig) -> int:
        """Returns the length that the turns were trained for.

        With the dynamic scaling that is the length it starts from: beyond it every key turns anew at each token, and a
        cache keeps keys as they were turned.
        """
        return min(config.max_length, self.steady(config))

    def steady(self, config: ModelConfig) -> int:
        """Returns `max_length`, or the length from which on the dynamic scaling depends on the length of a row."""
        dynamic = config.rope.scaling == "dynamic"
        return (config.rope.original_length if dynamic else None) or config.max_length

    def turns(
        self, config: ModelConfig, positions: jax.Array, *, local: bool = False, length: int | None = None
    ) -> Rotation:
        """Returns the turns; arguments as of `Scheme.turns`."""
        return Rotation.build(config, positions, local, length)


@flax.struct.dataclass
class Rotation:
    """The turns of rotary positions: float32 sines and cosines `[batch or 1, length, rotated / 2]`."""

    sin: jax.Array
    cos: jax.Array

    @classmethod
    def build(
        cls, config: ModelConfig, positions: jax.Array, local: bool = False, length: int | None = None
    ) -> Rotation:
        """Returns the turns at `[batch or 1, length]` positions, counted from the start of each segment.

        Args:
            config: of the model.
            positions: where the tokens stand.
            local: for a layer with a window, which may have wavelengths of its own.
            length: tokens of the row, which the dynamic scaling depends on; None: as many as there are positions.
        """
        frequencies, factor = rope_frequencies(config, length or positions.shape[-1], local)
        turns = angles(positions, frequencies)
        return cls(jnp.sin(turns) * factor, jnp.cos(turns) * factor)

    def turn(self, x: jax.Array) -> jax.Array:
        """Returns `x` turned; see `rope`."""
        return rope(x, self)


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
