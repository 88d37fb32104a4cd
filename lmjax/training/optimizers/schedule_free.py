"""Schedule-free AdamW: an average of the iterates instead of a falling learning rate."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import optax
from pydantic import Field

from lmjax.training.optimizers.base import Numbers, Optimizer, PyTree, Transformation


class ScheduleFree(Optimizer):
    """Defazio et al. 2024, arXiv:2405.15682, section 4."""

    schedules: ClassVar[tuple[str, ...]] = ("constant",)

    beta1: float = Field(0.9, gt=0, lt=1, description="weight of the average in the point of the gradient")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment")
    epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")

    def direction(self, h: Numbers) -> Transformation:
        """Returns AdamW's direction without momentum."""
        return optax.scale_by_adam(0.0, h.beta2, h.epsilon)

    def wrapped(self, h: Numbers, optimizer: Transformation, rate: jax.Array) -> Transformation:
        """Returns the optimizer with the interpolation and the averaging of iterates around it."""
        return optax.contrib.schedule_free(optimizer, rate, h.beta1)


def averaged_iterate(opt_state: PyTree, params: PyTree) -> PyTree:
    """Returns the parameters to evaluate: schedule-free's average x, and for other optimizers the parameters."""

    def is_free(node: Any) -> bool:
        return isinstance(node, optax.contrib.ScheduleFreeState)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_free) if is_free(node)]
    if not found:
        return params
    (state,) = found

    def average(y: jax.Array, z: jax.Array | optax.MaskedNode) -> jax.Array:
        # A frozen parameter has no z.
        return y if isinstance(z, optax.MaskedNode) else (y - (1 - state.b1) * z) / state.b1

    return jax.tree.map(average, params, state.z)
