"""Angles of positions, used by sinusoidal and rotary positions."""

import jax
import jax.numpy as jnp
import numpy as np


def angles(positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Returns float32 `[..., frequencies]`: positions `[...]` times frequencies, in radians per token."""
    frequencies = jnp.asarray(frequencies, jnp.float32)
    return positions[..., None].astype(jnp.float32) * jax.lax.expand_dims(frequencies, range(positions.ndim))
