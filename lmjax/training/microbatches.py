"""Microbatches of a step, and the gradients of losses that compare rows of different microbatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.objectives.base import Batch
from lmjax.objectives.sums import LossSum
from lmjax.training.scans import scan

PyTree = Any


def microbatches(batch: PyTree, count: int) -> PyTree:
    """Returns the batch as `[count, rows / count, ...]`; the rows of each device stay on that device."""

    def split(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)


def _joined(parts: PyTree) -> PyTree:
    """Returns the batch of microbatches, `[rows, ...]`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), parts)


def cached_gradients(
    represent: Callable[[Batch, jax.Array], PyTree],
    compared: Callable[[PyTree, Batch], dict[str, LossSum]],
    total: Callable[[dict[str, LossSum]], jax.Array],
    batch: Batch,
    parts: Batch,
    numbers: jax.Array,
    axis: str | None,
) -> tuple[dict[str, LossSum], PyTree]:
    """Returns the sums of losses that compare rows, and the gradient of their total with respect to representations.

    The gradient is split into microbatches. With it, each microbatch is differentiated alone, in a second pass with the
    same dropout, and the result is exactly the gradient over the whole batch (GradCache: Gao et al. 2021,
    arXiv:2101.06983, section 3.2). Only the representations of the whole batch are in memory at the same time.

    Inside `jax.pmap`, the sums are this replica's share of those over all replicas.

    Args:
        represent: from a microbatch and its number to its representations, arrays `[rows, ...]`.
        compared: from representations and the batch of the same rows to loss sums.
        total: from loss sums to the loss.
        batch: the batch, or this replica's part of it.
        parts: its microbatches.
        numbers: `[count]`, those of the microbatches.
        axis: of pmap; None: no pmap.
    """
    _, found = scan(lambda carry, part: (carry, represent(*part)), None, (parts, numbers))
    found, share = _joined(found), 1.0
    if axis is not None:
        found, batch = jax.lax.all_gather((found, batch), axis, tiled=True)
        share = 1 / jax.lax.axis_size(axis)

    def loss(found: PyTree) -> tuple[jax.Array, dict[str, LossSum]]:
        sums = compared(found, batch)
        return total(sums), sums

    gradient, sums = jax.grad(loss, has_aux=True)(found)
    if axis is not None:
        rows = len(jax.tree.leaves(parts)[0]) * jax.tree.leaves(parts)[0].shape[1]
        start = jax.lax.axis_index(axis) * rows
        gradient = jax.tree.map(lambda g: jax.lax.dynamic_slice_in_dim(g, start, rows), gradient)
    return jax.tree.map(lambda x: x * share, sums), microbatches(gradient, len(numbers))
