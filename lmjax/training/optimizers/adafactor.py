"""Adafactor: the second moments of a matrix are stored as means of its rows and columns."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

from lmjax.model.parameter_paths import is_matrix, is_scanned, map_named, matrix_shape
from lmjax.training.optimizers.base import Numbers, Optimizer, PyTree, Transformation

# Epsilon 1 and epsilon 2 of algorithm 6.
_SQUARE_FLOOR, _SCALE_FLOOR = 1e-30, 1e-3


class AdafactorState(NamedTuple):
    """Adafactor's state: number of updates, and second moments by parameter, as rows and columns if factored."""

    count: jax.Array
    second_moments: PyTree


class Adafactor(Optimizer):
    """Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5, without momentum.

    optax's own Adafactor is not used, because it treats the two largest axes of an array as the matrix. In arrays of
    stacked layers and in attention kernels these are not the rows and columns of a layer's matrix.
    """

    static: ClassVar[tuple[str, ...]] = ("factor_from",)

    decay_exponent: float = Field(0.8, gt=0, description="the second moment's decay is 1 - step**-exponent")
    factor_from: int = Field(128, ge=1, description="matrices with at least this many rows and columns are factored")
    update_clip: float = Field(1.0, gt=0, description="root mean square that updates are clipped to")
    parameter_scale: bool = Field(True, description="the learning rate is relative to the size of the parameter")

    def direction(self, h: Numbers) -> Transformation:
        """Returns the gradient over the root of the second moment, clipped, and scaled by the parameter's size."""

        def factored(names: tuple[str, ...], shape: tuple[int, ...]) -> bool:
            return is_matrix(names) and min(matrix_shape(names, shape)[1:]) >= self.factor_from

        def init(params: PyTree) -> AdafactorState:
            def zeros(names: tuple[str, ...], leaf: jax.Array) -> PyTree:
                if not factored(names, leaf.shape):
                    return jnp.zeros(leaf.shape, jnp.float32)
                count, rows, columns = matrix_shape(names, leaf.shape)
                return {"rows": jnp.zeros((count, rows)), "columns": jnp.zeros((count, columns))}

            return AdafactorState(jnp.zeros((), jnp.int32), map_named(zeros, params))

        def update(grads: PyTree, state: AdafactorState, params: PyTree) -> tuple[PyTree, AdafactorState]:
            count = state.count + 1
            decay = 1 - count.astype(jnp.float32) ** -h.decay_exponent

            def second_moment(names: tuple[str, ...], grad: jax.Array, old: PyTree) -> PyTree:
                squares = jnp.square(grad) + _SQUARE_FLOOR
                if not factored(names, grad.shape):
                    return decay * old + (1 - decay) * squares
                squares = squares.reshape(matrix_shape(names, grad.shape))
                new = {"rows": squares.mean(axis=2), "columns": squares.mean(axis=1)}
                return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, old, new)

            def direction(names: tuple[str, ...], grad: jax.Array, param: jax.Array, moment: PyTree) -> jax.Array:
                if isinstance(moment, dict):
                    rows, columns = moment["rows"], moment["columns"]
                    rows = rows / rows.mean(axis=1, keepdims=True)
                    moment = (rows[:, :, None] * columns[:, None, :]).reshape(grad.shape)
                # Clips and scales each of the stacked layers by itself, so that stacking changes no update.
                axes = tuple(range(int(is_scanned(names)), grad.ndim))
                step = grad * jax.lax.rsqrt(moment)
                step /= jnp.maximum(1, _rms(step, axes) / h.update_clip)
                return step * jnp.maximum(_rms(param, axes), _SCALE_FLOOR) if self.parameter_scale else step

            moments = map_named(second_moment, grads, state.second_moments)
            return map_named(direction, grads, params, moments), AdafactorState(count, moments)

        return Transformation(init, update)


def _rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True))
