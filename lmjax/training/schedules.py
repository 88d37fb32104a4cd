"""Schedules: the learning rate after the warm-up as a factor on its peak, with every number traced.

To add one, write a subclass of `Shape` and give it a line in `SCHEDULES`, and in `Schedules` if it has fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

from lmjax.schema import Schema

Numbers = Any


class Phase(NamedTuple):
    """The position of an update within a schedule.

    Attributes:
        progress: 0 at the last update before the schedule, 1 at the schedule's last update.
        step: the number of this update in the run, from 1.
        begin: the number of the last update before the schedule; after the warm-up, that is its last update.
        start: the rate over the peak at update `begin`: 1 after the warm-up.
        final: the rate over the peak at which the schedule ends.
    """

    progress: jax.Array
    step: jax.Array
    begin: jax.Array
    start: jax.Array
    final: jax.Array

    def fall(self, shape: jax.Array) -> jax.Array:
        """Returns `final` where `shape` is 0, `start` where it is 1, and a linear interpolation between."""
        return self.final + (self.start - self.final) * shape


class Shape(Schema):
    """One schedule. Fields that are numbers are read as traced arrays, `h.NAME`."""

    def factor(self, phase: Phase, h: Numbers) -> jax.Array:
        """Returns the learning rate over its peak.

        Args:
            phase: the position of the update within the schedule.
            h: this group's numbers as float32 scalars, under the names of its fields; None for one without fields.
        """
        raise NotImplementedError


class Constant(Shape):
    """The rate does not change."""

    def factor(self, phase: Phase, h: Numbers) -> jax.Array:
        """Returns the factor at the start of the schedule."""
        del h
        return phase.start * jnp.ones_like(phase.progress)


class Linear(Shape):
    """The rate falls linearly."""

    def factor(self, phase: Phase, h: Numbers) -> jax.Array:
        """Returns a factor that falls linearly to the final one."""
        del h
        return phase.fall(1 - phase.progress)


class Cosine(Shape):
    """Half a cosine wave (Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5)."""

    def factor(self, phase: Phase, h: Numbers) -> jax.Array:
        """Returns a factor that falls to the final one along half a cosine wave."""
        del h
        return phase.fall(0.5 * (1 + jnp.cos(jnp.pi * phase.progress)))


class Rsqrt(Shape):
    """1 / sqrt(step), whatever the length of the run (Vaswani et al. 2017, arXiv:1706.03762, section 5.3)."""

    def factor(self, phase: Phase, h: Numbers) -> jax.Array:
        """Returns a factor that falls as 1 / sqrt(step)."""
        del h
        return phase.start * jnp.sqrt(phase.begin / jnp.maximum(phase.step, phase.begin))


class WarmupStableDecay(Shape):
    """A constant rate, then a cooldown (Hu et al. 2024, arXiv:2404.06395, section 4).

    The cooldown of shape 1 - sqrt is that of Hägele et al. 2024, arXiv:2405.18392, section 4.
    """

    cooldown: float = Field(0.2, gt=0, le=1, description="share of the steps at the end in which the rate falls")
    cooldown_shape: Literal["sqrt", "linear"] = Field("sqrt", description="falls as 1 - sqrt(share) or linearly")

    def factor(self, phase: Phase, h: Numbers) -> jax.Array:
        """Returns the factor at the start, and in the cooldown one that falls to the final one."""
        cooled = jnp.clip(1 - (1 - phase.progress) / h.cooldown, 0, 1)
        return phase.fall(1 - (jnp.sqrt(cooled) if self.cooldown_shape == "sqrt" else cooled))


class Polynomial(Shape):
    """A power of the share of steps that are left."""

    power: float = Field(2.0, gt=0, description="the exponent")

    def factor(self, phase: Phase, h: Numbers) -> jax.Array:
        """Returns a factor that falls to the final one as a power of the share of steps that are left."""
        return phase.fall((1 - phase.progress) ** h.power)


SCHEDULES: dict[str, type[Shape]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "rsqrt": Rsqrt,
    "wsd": WarmupStableDecay,
    "polynomial": Polynomial,
}


class Joined(Schema):
    """Several schedules one after the other."""

    schedules: tuple[Literal[*SCHEDULES], ...] = Field((), description="the schedules, one after the other")
    shares: tuple[Annotated[float, Field(gt=0)], ...] = Field((), description="share of the steps of each schedule")


class Schedules(Schema):
    """The schedules that have fields, by their names."""

    wsd: WarmupStableDecay = WarmupStableDecay()
    polynomial: Polynomial = Polynomial()
    joined: Joined = Joined()
