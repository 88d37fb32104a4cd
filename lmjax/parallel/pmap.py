"""Replicas with `jax.pmap`: each device computes on its rows, and the step itself sums gradients, losses and weights.

The mesh does the same and more; pmap is the simple way that many tutorials and papers show, without a compiler that
partitions the program. A step equals that of the mesh up to rounding, with two exceptions. Dropout masks, and the
tokens that replaced token detection samples, are drawn on each replica for its own rows, so with them the two agree in
distribution only. A router's balance loss is computed over each replica's rows (`MoE`), not over the whole batch. The
state has no replica dimension: each device holds one copy, and checkpoints are the same as with a mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lmjax.axes import MESH_AXES
from lmjax.errors import FlagError
from lmjax.parallel.mesh import ParallelConfig

PyTree = Any
AXIS = "replicas"


def check(config: ParallelConfig) -> None:
    """Raises FlagError if the config splits more than the batch with pmap."""
    split = {n: size for n in sorted(set(MESH_AXES) - {"data"}) if (size := getattr(config, n)) != 1}
    if config.kind == "pmap" and split:
        sizes = ", ".join(f"{name}={size}" for name, size in split.items())
        raise FlagError(f"--parallel=pmap splits the batch alone, not {sizes}; set to 1, or take --parallel=mesh")


def over_replicas(tree: PyTree, axis: str | None) -> PyTree:
    """Returns the tree's sum over the replicas of pmap's `axis`; without an axis, the tree itself."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def replica_key(key: jax.Array, axis: str | None) -> jax.Array:
    """Returns a different key for each replica of `axis`; without an axis, the key itself."""
    return key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))


def replicate(step: Callable[..., Any]) -> Any:
    """Returns `step(state, batch, hparams, fixed)` over all devices, which differ in the rows of the batch alone."""
    return jax.pmap(step, AXIS, in_axes=(None, 0, None, None), out_axes=None, donate_argnums=0)


def to_replicas(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns this process's rows as `[local_devices, rows, ...]`, in the order in which the mesh splits them."""
    count = jax.local_device_count()
    return {name: x.reshape(count, x.shape[0] // count, *x.shape[1:]) for name, x in batch.items()}
