"""Zeros in kernels: those of a pruned model stay zero through training, or kernels are pruned while they are trained.

The parameters themselves say what is pruned: a number in a layer's kernel that is exactly zero. So a checkpoint needs
no masks beside them, and a run that resumes or starts from a pruned model goes on with the same zeros.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import optax
from pydantic import Field, model_validator

from lmjax.model.parameter_paths import is_hidden_matrix, map_named, matrix_shape
from lmjax.schema import Schema

PyTree = Any


class SparsityConfig(Schema):
    """Zeros in the kernels of layers."""

    # They decide the compiled step.
    static: ClassVar[tuple[str, ...]] = ("amount", "begin", "end", "every")

    keep_zeros: bool = Field(False, description="numbers of kernels in layers that are zero, as pruned ones, stay zero")
    amount: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of zeros that each kernel in a layer has after gradual pruning of its smallest numbers (Zhu"
        " and Gupta 2017, arXiv:1710.01878, section 3, equation 1); 0: none are pruned",
    )
    begin: int = Field(0, ge=0, description="first step of gradual pruning")
    end: int = Field(1000, ge=1, description="last step of gradual pruning")
    every: int = Field(100, ge=1, description="steps between two prunings")

    @property
    def keeps(self) -> bool:
        """Whether zeros stay zero."""
        return self.keep_zeros or self.amount > 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.amount and self.end < self.begin + self.every:
            raise ValueError(
                f"end={self.end} leaves less than every={self.every} steps after begin={self.begin}; raise it"
            )
        return self


def sparse(
    config: SparsityConfig, optimizer: optax.GradientTransformationExtraArgs, step: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer, with which zeros stay zero and kernels are pruned, as the config says.

    Args:
        config: of the run.
        optimizer: returns updates that are added to the parameters.
        step: the number of the update, from 0.
    """
    if not config.keeps:
        return optimizer

    def of_masked(updates: PyTree, state: PyTree, params: PyTree = None, *, norm: Any = None, **known: Any) -> Any:
        del norm  # of the gradients before the mask, whereas the masked ones are clipped
        return optimizer.update(updates, state, params, **known)

    masked = optax.GradientTransformationExtraArgs(optimizer.init, of_masked)
    # Gradients are masked too, because some optimizers keep other iterates than the parameters.
    parts = [optax.stateless(_without_zeros), masked, optax.stateless(_without_zeros)]
    if config.amount:
        parts.append(optax.stateless(functools.partial(_pruning, config, step)))
    return optax.with_extra_args_support(optax.chain(*parts))


def _without_zeros(updates: PyTree, params: PyTree) -> PyTree:
    """Returns the updates of parameters, with zero for numbers of kernels in layers that are zero."""
    return map_named(
        lambda names, u, p: jnp.where(p == 0, jnp.zeros((), u.dtype), u) if is_hidden_matrix(names) else u,
        updates,
        params,
    )


def wanted_share(config: SparsityConfig, step: jax.Array) -> jax.Array:
    """Returns the share of zeros after the update `step` (Zhu and Gupta 2017, equation 1, from a share of 0)."""
    progress = jnp.clip((step - config.begin) / (config.end - config.begin), 0, 1)
    return config.amount * (1 - (1 - progress) ** 3)


def _pruning(config: SparsityConfig, step: jax.Array, updates: PyTree, params: PyTree) -> PyTree:
    """Returns the updates, after which kernels in layers have the share of zeros that the schedule says."""
    due = (step >= config.begin) & (step <= config.end) & ((step - config.begin) % config.every == 0)
    due |= step == config.end
    share = wanted_share(config, step)

    def pruned(names: tuple[str, ...], update: jax.Array, own: jax.Array) -> jax.Array:
        if not is_hidden_matrix(names):
            return update
        sizes = jnp.abs(own + update).reshape(matrix_shape(names, own.shape)[0], -1)
        count = jnp.round(share * sizes.shape[1]).astype(jnp.int32)
        limits = jnp.sort(sizes, axis=1)[:, jnp.maximum(count - 1, 0)]
        limits = jnp.where(count > 0, limits, -1.0)
        gone = (sizes <= limits[:, None]).reshape(own.shape)
        return jnp.where(gone, -own, update)

    return jax.lax.cond(due, lambda u: map_named(pruned, u, params), lambda u: u, updates)
