"""Muon: orthogonal updates for the layers' kernels, AdamW for all other parameters."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from lmjax.model.parameter_paths import is_hidden_matrix, map_named, matrix_shape
from lmjax.training.optimizers.adam import AdamW
from lmjax.training.optimizers.base import Numbers, Transformation


class Muon(AdamW):
    """Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.

    The root mean square of an update is `rms` whatever the matrix's shape (Liu et al. 2025, arXiv:2502.16982,
    section 2.2), so both kinds of parameters can have the same learning rate and decay.
    """

    elementwise: ClassVar[bool] = False

    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment; not for layers' kernels")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment; not for layers' kernels")
    epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment; not for layers' kernels")
    momentum: float = Field(0.95, ge=0, lt=1, description="decay of the sum of the gradients of the layers' kernels")
    nesterov: bool = Field(True, description="look ahead by one step of momentum")
    rms: float = Field(0.2, gt=0, description="root mean square of a kernel's update; 0.2 is near AdamW's")

    def direction(self, h: Numbers) -> Transformation:
        """Returns the orthogonalised sum of gradients for the layers' kernels, and AdamW's direction for the rest."""

        def orthogonal(names: tuple[str, ...], x: jax.Array) -> jax.Array:
            matrices = matrix_shape(names, x.shape)
            return (h.rms * max(matrices[1:]) ** 0.5 * orthogonalized(x.reshape(matrices))).reshape(x.shape)

        matrices = optax.chain(
            optax.trace(h.momentum, self.nesterov, self.moment_dtype),
            optax.stateless(lambda updates, params: map_named(orthogonal, updates)),
        )
        return optax.partition(
            {"muon": matrices, "adamw": super().direction(h)},
            lambda tree: map_named(lambda names, _: "muon" if is_hidden_matrix(names) else "adamw", tree),
        )


def orthogonalized(x: jax.Array) -> jax.Array:
    """Returns the matrices `[..., rows, columns]` with singular values near 1, after five Newton-Schulz steps."""
    tall = x.shape[-2] > x.shape[-1]
    x = jnp.swapaxes(x, -1, -2) if tall else x
    x /= jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7
    for _ in range(5):
        square = x @ jnp.swapaxes(x, -1, -2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return jnp.swapaxes(x, -1, -2) if tall else x
