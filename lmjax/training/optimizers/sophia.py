"""Sophia: the first moment over an estimate of the curvature, clipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from lmjax.model.parameter_paths import map_named, names_of
from lmjax.training.optimizers.base import Numbers, OptimizerWithMoments, PyTree, Transformation


class SophiaState(NamedTuple):
    """Sophia's state: number of updates, first moment, and an estimate of the Hessian's diagonal."""

    count: jax.Array
    mean: PyTree
    curvature: PyTree


class Sophia(OptimizerWithMoments):
    """Sophia-H (Liu et al. 2023, arXiv:2305.14342, algorithm 3, with Hutchinson's estimate, algorithm 1).

    Hutchinson's estimate works with every objective; the other one, Gauss-Newton-Bartlett, would need to know how each
    objective samples labels. optax's own Sophia is not used, because it applies each estimate one step late and adds a
    bias correction that the paper does not have.
    """

    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the average of estimates of the curvature")
    epsilon: float = Field(1e-8, gt=0, description="the least divisor of the first moment")
    gamma: float = Field(0.05, gt=0, description="factor on the curvature; larger clips less")
    curvature_every: int = Field(10, ge=1, description="steps between estimates of the curvature")

    def direction(self, h: Numbers) -> Transformation:
        """Returns the clipped quotient; its `update` takes `curvature`, a function that returns an estimate."""

        def init(params: PyTree) -> SophiaState:
            mean = optax.tree.zeros_like(params, dtype=self.moment_dtype)
            return SophiaState(jnp.zeros((), jnp.int32), mean, optax.tree.zeros_like(params))

        def update(
            grads: PyTree, state: SophiaState, params: PyTree, *, curvature: Callable[[], PyTree], **others: Any
        ) -> tuple[PyTree, SophiaState]:
            del params, others

            def estimate(old: PyTree) -> PyTree:
                # The estimate covers all parameters; frozen ones, which this optimizer does not see, are left out.
                found = {names_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(curvature())}
                return map_named(lambda names, x: h.beta2 * x + (1 - h.beta2) * found[names], old)

            due = state.count % h.curvature_every.astype(jnp.int32) == 0
            diagonal = jax.lax.cond(due, estimate, lambda old: old, state.curvature)
            mean = jax.tree.map(lambda m, g: h.beta1 * m + (1 - h.beta1) * g, state.mean, grads)
            updates = jax.tree.map(
                lambda m, c: jnp.clip(m / jnp.maximum(h.gamma * c, h.epsilon), -1, 1), mean, diagonal
            )
            return updates, SophiaState(state.count + 1, optax.tree.cast(mean, self.moment_dtype), diagonal)

        return optax.GradientTransformationExtraArgs(init, update)


def hutchinson(gradient: Callable[[PyTree], PyTree], params: PyTree, key: jax.Array) -> PyTree:
    """Returns an unbiased estimate of the Hessian's diagonal: random signs times their product with the Hessian."""
    signs = optax.tree.random_like(key, params, jax.random.rademacher, dtype=jnp.float32)
    # Reverse over reverse mode, because functions with a custom backward pass, such as blocked attention, have no
    # forward-mode derivative.
    product = jax.grad(lambda params: optax.tree.vdot(gradient(params), signs))(params)
    return jax.tree.map(jnp.multiply, signs, product)
