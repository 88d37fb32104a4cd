"""Replicas by `jax.pmap`: each device computes on its rows, and gradients, sums and weights are added up by hand.

The mesh does all of this and more; pmap is the plain way that many courses and papers show, without a compiler that
partitions the program. A step is that of the mesh to rounding, with two exceptions. Masks of dropout, and the tokens
that replaced token detection samples, are drawn on each replica for its own rows, so with them the two agree in
distribution only. A router's balance is that of each replica's rows (`MoE`), not of the whole batch. The state is never
stacked by replica: it goes in and comes out as one copy on every device, and its checkpoints are those of the mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lmjax.errors import FlagError
from lmjax.parallel.mesh import ParallelConfig

PyTree = Any
AXIS = "replicas"


def check(config: ParallelConfig) -> None:
    """Raises FlagError if pmap is asked to split more than the batch."""
    split = {n: s for n in sorted(set(type(config).model_fields) - {"kind", "data"}) if (s := getattr(config, n)) != 1}
    if config.kind == "pmap" and split:
        sizes = ", ".join(f"{name}={size}" for name, size in split.items())
        raise FlagError(f"--parallel=pmap splits the batch alone, not {sizes}; set to 1, or take --parallel=mesh")


def over_replicas(tree: PyTree, axis: str | None) -> PyTree:
    """Returns the tree's sum over the replicas of pmap's `axis`; the tree itself where there is no such axis."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def replica_key(key: jax.Array, axis: str | None) -> jax.Array:
    """Returns a key of this replica's own; the key itself where there are none."""
    return key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))


def replicate(step: Callable[..., Any]) -> Any:
    """Returns `step(state, batch, hparams)` over all devices: each gets its rows of the batch and the same rest."""
    return jax.pmap(step, AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0)


def to_replicas(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns this process's rows as `[local devices, rows, ...]`, in the order in which the mesh splits them."""
    count = jax.local_device_count()
    return {name: x.reshape(count, x.shape[0] // count, *x.shape[1:]) for name, x in batch.items()}
