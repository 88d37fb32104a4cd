"""The loss-spike guard: an update whose gradient is far larger than usual is left out.

Chowdhery et al. 2022, arXiv:2204.02311, section 5.1, went back and skipped the batches around a spike of the loss; here
an update is judged as it comes, by its gradient's norm against an exponential average, as in ZClip (Kumar et al. 2025,
arXiv:2504.02507, section 3). All of it is part of the compiled step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lmjax.training.hyperparameters import Hyperparameters


class SpikeState(struct.PyTreeNode):
    """What the guard remembers.

    Attributes:
        average: float32, the exponential average of gradient norms, biased towards 0 at the start.
        count: int32, norms in the average.
        left_out: int32, updates that were left out.
    """

    average: jax.Array
    count: jax.Array
    left_out: jax.Array

    @classmethod
    def zero(cls) -> SpikeState:
        """Returns the state before the first step."""
        return cls(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def judge(state: SpikeState, norm: jax.Array, finite: jax.Array, h: Hyperparameters) -> tuple[jax.Array, SpikeState]:
    """Returns whether an update is a spike, and the state after it.

    A spike enters the average as the largest norm that is none: should the norms stay high, they become usual. A norm
    that is not finite leaves the average alone and is no spike.
    """
    n = h.optimizer
    usual = state.average / jnp.maximum(1 - n.spike_average ** state.count.astype(jnp.float32), 1e-6)
    limit = n.spike_factor * usual
    spike = finite & (state.count.astype(jnp.float32) >= n.spike_warmup) & (norm > limit)
    average = n.spike_average * state.average + (1 - n.spike_average) * jnp.where(spike, limit, norm)
    return spike, SpikeState(
        average=jnp.where(finite, average, state.average),
        count=state.count + finite,
        left_out=state.left_out + spike,
    )
