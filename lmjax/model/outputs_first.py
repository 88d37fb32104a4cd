"""Kernels with their outputs before their inputs, which a CPU multiplies with a few rows at the speed of reading."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lmjax.model.parameter_paths import input_axes, is_hidden_matrix, names_of
from lmjax.model.quantized import is_quantized

PyTree = Any


class OutputsFirst(struct.PyTreeNode):
    """A kernel as a transposed matrix. Modules read it as any other: `astype` makes it as it was.

    Attributes:
        matrix: `[outputs, inputs]`.
        core: the shape of the kernel, such as (embed, heads, head_dim).
    """

    matrix: jax.Array
    core: tuple[int, ...] = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel."""
        return self.core

    @property
    def ndim(self) -> int:
        """The number of dimensions of the kernel."""
        return len(self.core)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the kernel."""
        return self.matrix.dtype

    def astype(self, dtype: Any) -> jax.Array:
        """Returns the kernel, inputs first."""
        return self.matrix.T.reshape(self.core).astype(dtype)


def outputs_first(params: PyTree) -> PyTree:
    """Returns parameters whose kernels in layers have their outputs first; the arrays of these kernels are deleted.

    Kernels in few bits, and those of several layers or experts in one array, stay as they are.
    """

    def of(path: tuple, leaf: Any) -> Any:
        names = names_of(path)
        if is_quantized(leaf) or not is_hidden_matrix(names):
            return leaf
        inputs = input_axes(names, leaf.ndim)
        if min(inputs) % leaf.ndim:
            return leaf
        made = OutputsFirst(_transposed(leaf, math.prod(leaf.shape[i] for i in inputs)), leaf.shape)
        leaf.delete()
        return made

    return jax.tree_util.tree_map_with_path(of, params, is_leaf=is_quantized)


def inputs_first(params: PyTree) -> PyTree:
    """Returns parameters whose kernels are all as modules make them."""
    restored = lambda x: x.astype(x.dtype) if isinstance(x, OutputsFirst) else x  # noqa: E731
    return jax.tree.map(restored, params, is_leaf=lambda x: isinstance(x, OutputsFirst))


@functools.partial(jax.jit, static_argnums=1)
def _transposed(kernel: jax.Array, inputs: int) -> jax.Array:
    return kernel.reshape(inputs, -1).T
