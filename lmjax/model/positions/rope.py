"""Rotary positions: queries and keys are rotated by their positions (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.model import tpu
from lmjax.model.platform import platform
from lmjax.model.positions.angles import angles
from lmjax.model.positions.scheme import Scheme

if TYPE_CHECKING:
    from lmjax.model.config import ModelConfig


class Rope(Scheme):
    """Rotations of pairs of columns of queries and keys."""

    fields: ClassVar[tuple[str, ...]] = ("rope",)

    def problems(self, config: ModelConfig, used: bool) -> tuple[tuple[bool, str], ...]:
        """Returns the rules on the rotated dimensions and on the scaling."""
        rope = config.rope
        return (
            (
                used and (config.rotated_dim % 2 != 0 or config.rotated_dim == 0),
                f"positions=rope rotates pairs of dimensions, and rope.fraction={rope.fraction} of"
                f" head_dim={config.width_of_head} is {config.rotated_dim}; make it even and above 0",
            ),
            (
                rope.scaling in ("dynamic", "ntk") and config.rotated_dim < 4,
                f"rope.scaling={rope.scaling} needs at least four rotated dimensions, and there are"
                f" {config.rotated_dim}; use wider heads",
            ),
            *_factor_rules(config),
            (
                rope.local_theta is not None and config.attention.window is None,
                f"rope.local_theta={rope.local_theta} is for layers with a window; set attention.window",
            ),
        )

    def limit(self, config: ModelConfig) -> int:
        """Returns the most tokens of a row in generation.

        With the dynamic scaling this is the length from which it scales: in longer rows the rotation of all keys
        changes with every token, but the keys in a cache are stored rotated. The same holds for longrope with other
        factors in short rows; without them, rows may have `max_length` tokens.
        """
        return min(config.max_length, self.steady(config))

    def steady(self, config: ModelConfig) -> int:
        """Returns `max_length`, or the greatest length of a short row if longer rows have other frequencies."""
        return (config.rope.original_length if config.rope.by_length else None) or config.max_length

    def turns(
        self, config: ModelConfig, positions: jax.Array, *, local: bool = False, length: int | None = None
    ) -> Rotation:
        """Returns the rotations; arguments as of `Scheme.turns`."""
        return Rotation.build(config, positions, local, length)


def _factor_rules(config: ModelConfig) -> tuple[tuple[bool, str], ...]:
    """Returns the rules on the factors of longrope."""
    rope, pairs = config.rope, config.rotated_dim // 2
    needed = {"long_factors": rope.long_factors} if rope.scaling == "longrope" else {}
    needed |= {"short_factors": rope.short_factors} if rope.short_factors else {}
    return tuple(
        (
            len(values) != pairs,
            f"rope.{name} has {len(values)} numbers, and {config.rotated_dim} dimensions rotate in {pairs} pairs; give"
            " one number for each pair",
        )
        for name, values in needed.items()
    )


@flax.struct.dataclass
class Rotation:
    """The rotations at given positions: float32 sines and cosines `[batch or 1, length, rotated / 2]`."""

    sin: jax.Array
    cos: jax.Array

    @classmethod
    def build(
        cls, config: ModelConfig, positions: jax.Array, local: bool = False, length: int | None = None
    ) -> Rotation:
        """Returns the rotations at the given positions.

        Args:
            config: of the model.
            positions: `[batch or 1, length]`, counted from the start of each segment.
            local: for a layer with a window, which may have other wavelengths.
            length: of the row in tokens, if frequencies depend on it; None: the number of positions.
        """
        frequencies, factor = rope_frequencies(config, length or positions.shape[-1], local)
        turns = angles(positions, frequencies)
        return cls(jnp.sin(turns) * factor, jnp.cos(turns) * factor)

    def turn(self, x: jax.Array) -> jax.Array:
        """Returns `x` rotated by `rope`."""
        return rope(x, self)


def rope(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Returns `x` with each pair of columns (i, i + rotated / 2) rotated, and the columns from `rotated` on unchanged.

    Su et al. 2021, arXiv:2104.09864, section 3.2.2; the columns are paired as in GPT-NeoX and Llama checkpoints.

    Args:
        x: queries or keys `[batch, length, heads, head_dim]`.
        rotation: the rotations at their positions.
    """
    if platform() == "tpu" and x.dtype == jnp.bfloat16:
        return tpu.rotate(x, rotation.sin, rotation.cos)
    half = rotation.sin.shape[-1]
    sin, cos = rotation.sin[:, :, None, :], rotation.cos[:, :, None, :]
    first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate([*turned, rest], axis=-1).astype(x.dtype)


def rope_frequencies(config: ModelConfig, length: int, local: bool = False) -> tuple[np.ndarray, float]:
    """Returns the frequencies in radians per token, float64 `[rotated / 2]`, and the factor on sines and cosines.

    The definitions are those of published checkpoints (transformers, `modeling_rope_utils`).

    Args:
        config: of the model.
        length: of the row in tokens, if frequencies depend on it.
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
    if rope.scaling in ("dynamic", "ntk"):
        beyond = rope.factor * max(length, original) / original - (rope.factor - 1)
        stretch = rope.factor if rope.scaling == "ntk" else beyond
        return stretched_base(rope.theta, stretch, dim) ** -exponents, 1.0
    if rope.scaling == "longrope":
        short = rope.by_length and length <= original
        factor = rope.attention_factor or math.sqrt(1 + math.log(rope.factor) / math.log(original))
        return plain / np.asarray(rope.short_factors if short else rope.long_factors), factor
    if rope.scaling == "yarn":
        # The dimensions that make `beta_fast` and `beta_slow` turns in the original length.
        low, high = (
            dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
            for turns in (rope.beta_fast, rope.beta_slow)
        )
        low, high = (math.floor(low), math.ceil(high)) if rope.truncate else (low, high)
        low, high = max(low, 0), min(high, dim - 1)
        slowed = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0, 1)
        factor = 0.1 * math.log(rope.factor) + 1 if rope.attention_factor is None else rope.attention_factor
        return plain * (1 - slowed) + plain / rope.factor * slowed, factor
    if rope.scaling == "llama3":
        turns = original * plain / (2 * math.pi)
        kept = np.clip((turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency), 0, 1)
        return plain * kept + plain / rope.factor * (1 - kept), 1.0
    return plain, 1.0


def stretched_base(theta: float, factor: float, dim: int) -> float:
    """Returns the base with which the slowest of `dim / 2` rotations is `factor` times as slow, and the fastest is not.

    "NTK-aware" interpolation (Peng et al. 2023, arXiv:2309.00071, equation 16).
    """
    return theta * factor ** (dim / (dim - 2))
