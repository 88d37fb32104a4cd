"""The average of the parameters that a run keeps and evaluates: exponential, or equal from a step on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lmjax.training.state import TrainState

PyTree = Any


def averaged(numbers: Any, state: TrainState, params: PyTree, good: jax.Array) -> PyTree | None:
    """Returns the average after an update; None: the run keeps none.

    With `ema_decay` d it is d times the average before plus 1 - d times the parameters. With `average_from` s and
    `average_every` c, it is the mean of the parameters after the steps s, s + c, s + 2c ... (stochastic weight
    averaging: Izmailov et al. 2018, arXiv:1803.05407, section 3.2); before step s, it is the parameters themselves.

    Args:
        numbers: the traced numbers of the optimizer's config.
        state: the state before the update.
        params: the parameters after it.
        good: bool scalar, whether the update was applied; an exponential average leaves out skipped updates.
    """
    if state.average is None:
        return None
    step = state.step.astype(jnp.float32)
    if numbers.average_from is None:
        # The decay is lower in the first steps, or the initial parameters would stay in the average for long.
        share = jnp.where(good, 1 - jnp.minimum(numbers.ema_decay, (1 + step) / (10 + step)), 0.0)
    else:
        since = step + 1 - numbers.average_from
        count = jnp.floor(since / numbers.average_every)
        share = jnp.where(since == count * numbers.average_every, 1 / (count + 1), 0.0)
        share = jnp.where(since <= 0, 1.0, share)
    return jax.tree.map(lambda a, p: a + share * (p - a), state.average, params)
