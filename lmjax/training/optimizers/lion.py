"""Lion: the sign of an average of gradients."""

from __future__ import annotations

from typing import ClassVar

import optax
from pydantic import Field

from lmjax.training.optimizers.base import Numbers, OptimizerWithMoments, Transformation


class Lion(OptimizerWithMoments):
    """Chen et al. 2023, arXiv:2302.06675, algorithm 2."""

    elementwise: ClassVar[bool] = True

    beta1: float = Field(0.9, ge=0, lt=1, description="weight of the average in the update; the gradient has the rest")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the average of gradients")

    def direction(self, h: Numbers) -> Transformation:
        """Returns the sign of a weighted sum of the average and the gradient."""
        return optax.scale_by_lion(h.beta1, h.beta2, self.moment_dtype)
