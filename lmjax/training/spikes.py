"""The loss-spike guard: an update is skipped if the norm of its gradient is far larger than usual.

Chowdhery et al. 2022, arXiv:2204.02311, section 5.1, restarted from a checkpoint and skipped the batches around a spike
of the loss. Here each update is tested inside the compiled step: its gradient's norm is compared with an exponential
average of earlier norms, as in ZClip (Kumar et al. 2025, arXiv:2504.02507, section 3).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lmjax.training.hyperparameters import Hyperparameters


class SpikeState(struct.PyTreeNode):
    """The state of the guard.

    Attributes:
        average: float32, the exponential average of gradient norms, biased towards 0 at the start.
        count: int32, number of norms in the average.
        left_out: int32, number of skipped updates.
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

    A spike is added to the average as the limit, the largest norm that is not a spike, so that the limit rises if the
    norms stay high. A norm that is not finite is not a spike and does not change the average.
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
