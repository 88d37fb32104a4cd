"""Paths of parameters, such as `backbone/stack/layer_3/mlp/up/kernel`: their names, and the kind of parameter.

Unrolled layers of a stack are called `layer_0`, `layer_1`, ...; scanned ones are `layers`, and the first axis of each
array is the layer; a layer that is shared by the whole stack is `shared_layer`. Interop writes `{i}` for the number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

PyTree = Any
Names = tuple[str, ...]

EMBEDDING, BACKBONE, INPUTS_NAME, STACK_NAME = "embedding", "backbone", "inputs", "stack"
SCANNED, UNROLLED, SHARED = "layers", "layer_", "shared_layer"
INPUTS, STACK = f"{BACKBONE}/{INPUTS_NAME}", f"{BACKBONE}/{STACK_NAME}"
ITH_LAYER = f"{UNROLLED}{{i}}"
LAYER, SHARED_LAYER = f"{STACK}/{ITH_LAYER}", f"{STACK}/{SHARED}"
# Modules whose table is a bias on attention scores: a scalar for each head and bucket of distances.
RELATIVE_BIAS, CROSS_RELATIVE_BIAS, BLOCK_RELATIVE_BIAS = "relative_bias", "cross_relative_bias", "block_relative_bias"
BIAS_TABLES = frozenset({RELATIVE_BIAS, CROSS_RELATIVE_BIAS, BLOCK_RELATIVE_BIAS})
# Modules before the first layer: the token table, the embeddings of positions and types with their norm, and the
# projection of factorised embeddings to the model's width.
BELOW_LAYERS = frozenset({EMBEDDING, INPUTS_NAME, "project_in"})

_SINGLE = re.compile(rf"{UNROLLED}(\d+)|{SHARED}")
# The axes of an attention kernel, counted from the end, at which its inputs begin and at which its outputs begin.
_HEADS = {"query": (-3, -2), "key": (-3, -2), "value": (-3, -2), "out": (-3, -1)}


class Layer(NamedTuple):
    """The layer that a parameter belongs to.

    Attributes:
        stack: the path of its stack.
        number: of the layer in its stack, 0 for a shared layer; None: the parameter stacks all scanned layers.
    """

    stack: Names
    number: int | None


def names_of(path: tuple) -> Names:
    """Returns the dictionary keys of a JAX path in a tree of parameters; other entries, as of boxes, are left out."""
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def map_named(f: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Returns the tree with `f(names, leaf, *leaves of rest)` in place of each leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: f(names_of(path), *leaves), tree, *rest)


def layer_of(names: Names) -> Layer | None:
    """Returns the layer that a parameter belongs to; None: it is not in a layer."""
    for i, name in enumerate(names):
        if name == SCANNED:
            return Layer(names[:i], None)
        if found := _SINGLE.fullmatch(name):
            return Layer(names[:i], int(found[1] or 0))
    return None


def layer_paths(path: str) -> Callable[[int], str] | None:
    """Returns a function from a layer's number to the parameter's path in an unrolled model; None: it is not scanned.

    Args:
        path: names in a scanned model, joined by slashes.
    """
    names = path.split("/")
    if SCANNED not in names:
        return None
    place = names.index(SCANNED)
    return lambda layer: "/".join([*names[:place], f"{UNROLLED}{layer}", *names[place + 1 :]])


def is_scanned(names: Names) -> bool:
    """Returns whether a parameter stacks the scanned layers along its first axis."""
    return SCANNED in names


def is_matrix(names: Names) -> bool:
    """Returns whether a parameter is a matrix in each layer: a kernel or an embedding table, but no bias table."""
    return names[-1] in ("kernel", "table") and not is_bias_table(names)


def is_bias_table(names: Names) -> bool:
    """Returns whether a parameter is a table of biases on attention scores (Raffel et al. 2020, section 2.1)."""
    return len(names) > 1 and names[-2] in BIAS_TABLES


def is_hidden_matrix(names: Names) -> bool:
    """Returns whether a parameter is a kernel in a layer, the router excepted."""
    return layer_of(names) is not None and names[-1] == "kernel" and "router" not in names


def shrinks_with_width(names: Names) -> bool:
    """Returns whether muP lowers a parameter's learning rate in a wider model: a kernel whose inputs grow with it."""
    return names[-1] == "kernel" and "project_in" not in names


def matrix_shape(names: Names, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns a kernel's shape as `[matrices, inputs, outputs]`.

    Kernels of attention are `[embed, heads, head_dim]` or `[heads, head_dim, embed]`. Axes of scanned layers and of
    experts come first, and count as separate matrices.
    """
    first, second = _matrix(names, len(shape))
    inputs, outputs = (int(np.prod(s)) for s in (shape[first : second or None], shape[second:]))
    return int(np.prod(shape[:first])), inputs, outputs


def input_axes(names: Names, rank: int) -> tuple[int, ...]:
    """Returns the axes of a kernel that a product sums over, counted from the end; `rank` is its number of axes."""
    return tuple(range(*_matrix(names, rank)))


def _matrix(names: Names, rank: int) -> tuple[int, int]:
    """Returns the axes, counted from the end, at which the inputs and the outputs of a kernel begin."""
    return _HEADS.get(names[-2], (-2, -1)) if len(names) > 1 and rank > 2 else (-2, -1)
