"""Adam and AdamW, which differ in where weight decay is added."""

from __future__ import annotations

from typing import ClassVar

import optax
from pydantic import Field

from lmjax.training.optimizers.base import Numbers, OptimizerWithMoments, Transformation


class AdamW(OptimizerWithMoments):
    """Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2."""

    elementwise: ClassVar[bool] = True

    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment")
    epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")

    def direction(self, h: Numbers) -> Transformation:
        """Returns the first moment over the root of the second, both with bias correction."""
        return optax.scale_by_adam(h.beta1, h.beta2, h.epsilon, mu_dtype=self.moment_dtype)


class Adam(AdamW):
    """Kingma and Ba 2015, arXiv:1412.6980, algorithm 1."""

    decay_in_gradient: ClassVar[bool] = True
