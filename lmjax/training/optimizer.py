"""Optimizers and schedules, with every number a traced array.

A hyperparameter that is a number (a learning rate, a decay, a rate of dropout, the weight of a loss) is an argument of
the compiled step, never a constant of it. Another value compiles nothing anew, and many values train at once under
`vmap`. What changes the program (the optimizer's name, the schedule's shape, dropout or none) is config.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from pydantic import Field

from lmjax.model.config import DropoutRates
from lmjax.schema import Schema

PyTree = Any


class OptimizerConfig(Schema):
    """The optimizer, its schedule, and their numbers."""

    name: Literal["adamw"] = "adamw"
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="what follows the warm-up")
    learning_rate: float = Field(1e-3, gt=0, description="the peak")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up from zero")
    final_ratio: float = Field(0.1, ge=0, le=1, description="the last learning rate over the peak")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="decoupled; kernels and embeddings only")
    clip_norm: float | None = Field(1.0, gt=0, description="global norm of clipped gradients; none: no clipping")


class Hyperparameters(struct.PyTreeNode):
    """The numbers of a run, float32 scalars that ride beside the state.

    Attributes:
        learning_rate: the peak.
        warmup_steps: steps of linear warm-up.
        total_steps: the step at which the schedule ends.
        final_ratio: the last learning rate over the peak.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        weight_decay: decoupled decay.
        clip_norm: global norm that gradients are clipped to, or None.
        dropout: rates of dropout.
        loss_weights: weight of every objective in the loss.
    """

    learning_rate: jax.Array
    warmup_steps: jax.Array
    total_steps: jax.Array
    final_ratio: jax.Array
    beta1: jax.Array
    beta2: jax.Array
    epsilon: jax.Array
    weight_decay: jax.Array
    clip_norm: jax.Array | None
    dropout: DropoutRates
    loss_weights: dict[str, jax.Array]

    @classmethod
    def build(
        cls, config: OptimizerConfig, *, steps: int, dropout: DropoutRates, loss_weights: dict[str, float]
    ) -> Hyperparameters:
        """Returns the numbers of a config as arrays."""
        names = ("learning_rate", "warmup_steps", "final_ratio", "beta1", "beta2", "epsilon", "weight_decay")
        numbers = {name: getattr(config, name) for name in names}
        hparams = cls(
            **numbers, total_steps=steps, clip_norm=config.clip_norm, dropout=dropout, loss_weights=loss_weights
        )
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hparams)


def _constant(progress: jax.Array, h: Hyperparameters) -> jax.Array:
    del h
    return jnp.ones_like(progress)


def _linear(progress: jax.Array, h: Hyperparameters) -> jax.Array:
    return 1 - (1 - h.final_ratio) * progress


def _cosine(progress: jax.Array, h: Hyperparameters) -> jax.Array:
    return h.final_ratio + (1 - h.final_ratio) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


SCHEDULES: dict[str, Callable[[jax.Array, Hyperparameters], jax.Array]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
}


def learning_rate(config: OptimizerConfig, h: Hyperparameters, step: jax.Array) -> jax.Array:
    """Returns the learning rate of update `step` (from 0): linear warm-up, then the schedule, down to the last step."""
    step = step.astype(jnp.float32)
    warmup = jnp.minimum((step + 1) / jnp.maximum(h.warmup_steps, 1), 1)
    decay_steps = jnp.maximum(h.total_steps - h.warmup_steps, 1)
    progress = jnp.clip((step - h.warmup_steps) / decay_steps, 0, 1)
    return h.learning_rate * warmup * SCHEDULES[config.schedule](progress, h)


def decay_mask(params: PyTree) -> PyTree:
    """Returns True at the parameters that weight decay acts on: all but biases and the scales of norms."""

    def decays(path: tuple, leaf: jax.Array) -> bool:
        del leaf
        return not any(getattr(key, "key", None) in ("bias", "scale") for key in path)

    return jax.tree_util.tree_map_with_path(decays, params)


def _adamw(h: Hyperparameters) -> optax.GradientTransformation:
    """Adam with decoupled decay (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2)."""
    return optax.chain(
        optax.scale_by_adam(h.beta1, h.beta2, h.epsilon), optax.add_decayed_weights(h.weight_decay, mask=decay_mask)
    )


OPTIMIZERS: dict[str, Callable[[Hyperparameters], optax.GradientTransformation]] = {"adamw": _adamw}


def make_optimizer(config: OptimizerConfig, h: Hyperparameters, step: jax.Array) -> optax.GradientTransformation:
    """Returns the optimizer of update `step`. Its state's structure depends on the config alone, not on the numbers."""
    clip = [] if h.clip_norm is None else [optax.clip_by_global_norm(h.clip_norm)]
    return optax.chain(*clip, OPTIMIZERS[config.name](h), optax.scale_by_learning_rate(learning_rate(config, h, step)))
