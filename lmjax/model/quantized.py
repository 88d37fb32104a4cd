"""Kernels kept as 8-bit integers with a scale for each of their outputs: a quarter of the bytes of float32.

A kernel W `[inputs, outputs]` is kept as the integers nearest to W / s, s being the largest absolute value of an
output's column divided by 127, so that no number is off by more than s / 2 (symmetric quantisation to the nearest;
Dettmers et al. 2022, arXiv:2208.07339, section 2). Modules read such a kernel as any other: `astype` makes the numbers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lmjax.model.parameter_paths import input_axes, is_hidden_matrix, map_named

PyTree = Any
_MOST = 127


class Quantized(struct.PyTreeNode):
    """A kernel as integers.

    Attributes:
        values: int8, in the kernel's shape.
        scales: float32, with size one along the kernel's inputs.
    """

    values: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions of the kernel."""
        return self.values.ndim

    def astype(self, dtype: Any) -> jax.Array:
        """Returns the kernel in a floating-point dtype."""
        return (self.values.astype(jnp.float32) * self.scales).astype(dtype)


def quantized(kernel: jax.Array, inputs: tuple[int, ...]) -> Quantized:
    """Returns a kernel as integers.

    Args:
        kernel: of any shape.
        inputs: the axes that a product sums over.
    """
    numbers = kernel.astype(jnp.float32)
    largest = jnp.max(jnp.abs(numbers), axis=inputs, keepdims=True)
    scales = jnp.where(largest > 0, largest, 1.0) / _MOST
    return Quantized(jnp.round(numbers / scales).astype(jnp.int8), scales)


def quantize_layers(params: PyTree) -> PyTree:
    """Returns parameters whose kernels in layers are integers; routers, tables, norms and heads stay as they are."""

    def of(names: tuple[str, ...], leaf: jax.Array) -> jax.Array | Quantized:
        return quantized(leaf, input_axes(names, leaf.ndim)) if is_hidden_matrix(names) else leaf

    return jax.jit(lambda tree: map_named(of, tree))(params)


def rounded_layers(params: PyTree) -> PyTree:
    """Returns parameters whose kernels in layers have the values that `quantize_layers` keeps, in their own dtype."""

    def rounded(params: PyTree) -> PyTree:
        kept = quantize_layers(params)
        return jax.tree.map(
            lambda x, own: x.astype(own.dtype), kept, params, is_leaf=lambda x: isinstance(x, Quantized)
        )

    return jax.jit(rounded)(params)
