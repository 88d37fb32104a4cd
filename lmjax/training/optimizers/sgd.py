"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import ClassVar

import optax
from pydantic import Field

from lmjax.training.optimizers.base import Numbers, OptimizerWithMoments, Transformation


class SGD(OptimizerWithMoments):
    """Sutskever et al. 2013, section 2, in the form of torch (without dampening)."""

    decay_in_gradient: ClassVar[bool] = True

    momentum: float = Field(0.95, ge=0, lt=1, description="decay of the sum of gradients")
    nesterov: bool = Field(True, description="look ahead by one step of momentum")

    def direction(self, h: Numbers) -> Transformation:
        """Returns the exponentially decaying sum of gradients."""
        return optax.trace(h.momentum, self.nesterov, self.moment_dtype)
