"""Schedules: the learning rate as a function of the step, with every number traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig


class Phase(NamedTuple):
    """Where a schedule stands.

    Attributes:
        progress: 0 at the last update before it, 1 at its own last.
        step: updates so far, the coming one included.
        begin: updates before it; the warm-up's last one, which has the peak, is the first that counts.
        start: the rate over the peak at the last update before it: 1 after the warm-up.
        final: the rate over the peak that it falls to.
    """

    progress: jax.Array
    step: jax.Array
    begin: jax.Array
    start: jax.Array
    final: jax.Array

    def fall(self, shape: jax.Array) -> jax.Array:
        """Returns `start` where `shape` is 1, `final` where it is 0, and a line between."""
        return self.final + (self.start - self.final) * shape


def _constant(phase: Phase, config: OptimizerConfig, h: Hyperparameters) -> jax.Array:
    del config, h
    return phase.start * jnp.ones_like(phase.progress)


def _linear(phase: Phase, config: OptimizerConfig, h: Hyperparameters) -> jax.Array:
    del config, h
    return phase.fall(1 - phase.progress)


def _cosine(phase: Phase, config: OptimizerConfig, h: Hyperparameters) -> jax.Array:
    """Half a wave (Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5)."""
    del config, h
    return phase.fall(0.5 * (1 + jnp.cos(jnp.pi * phase.progress)))


def _rsqrt(phase: Phase, config: OptimizerConfig, h: Hyperparameters) -> jax.Array:
    """1 / sqrt(step), which knows no end (Vaswani et al. 2017, arXiv:1706.03762, section 5.3)."""
    del config, h
    return phase.start * jnp.sqrt(phase.begin / jnp.maximum(phase.step, phase.begin))


def _wsd(phase: Phase, config: OptimizerConfig, h: Hyperparameters) -> jax.Array:
    """Stable, then a cooldown (Hu et al. 2024, arXiv:2404.06395, section 4).

    Its shape 1 - sqrt is that of Hägele et al. 2024, arXiv:2405.18392, section 4.
    """
    cooled = jnp.clip(1 - (1 - phase.progress) / h.cooldown, 0, 1)
    return phase.fall(1 - (jnp.sqrt(cooled) if config.cooldown_shape == "sqrt" else cooled))


def _polynomial(phase: Phase, config: OptimizerConfig, h: Hyperparameters) -> jax.Array:
    del config
    return phase.fall((1 - phase.progress) ** h.power)


SCHEDULES: dict[str, Callable[[Phase, OptimizerConfig, Hyperparameters], jax.Array]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "rsqrt": _rsqrt,
    "wsd": _wsd,
    "polynomial": _polynomial,
}


def learning_rate(config: OptimizerConfig, h: Hyperparameters, step: jax.Array) -> jax.Array:
    """Returns the learning rate of update `step` (from 0): linear warm-up, then the schedule, down to the last update.

    Of n updates of warm-up the first has 1 / n of the peak and the last the peak; without warm-up the first update has
    the peak. The last update of the run has `final_ratio` of it, where the schedule has an end. Joined schedules share
    the steps after the warm-up, and each takes over where the one before it left off. A warm-up that is as long as the
    run is all there is of it.
    """
    # Updates so far, this one included: the first is number 1, the last is number `total_steps`.
    number = step.astype(jnp.float32) + 1
    warmup_steps = jnp.maximum(h.warmup_steps, 1)
    names = config.schedules or (config.schedule,)
    ends = jnp.cumsum(h.shares) if config.schedules else jnp.ones(1)
    decay_steps = jnp.maximum(h.total_steps - warmup_steps, 0)

    begin, start = warmup_steps, jnp.ones(())
    factor = start
    for name, end in zip(names, list(ends / ends[-1]), strict=True):
        last = warmup_steps + end * decay_steps
        progress = jnp.clip((number - begin) / jnp.maximum(last - begin, 1e-6), 0, 1)
        phase = Phase(progress, number, begin, start, h.final_ratio)
        factor = jnp.where(number > begin, SCHEDULES[name](phase, config, h), factor)
        start = SCHEDULES[name](phase._replace(progress=jnp.ones(()), step=last), config, h)
        begin = last
    return h.learning_rate * jnp.minimum(number / warmup_steps, 1) * factor
