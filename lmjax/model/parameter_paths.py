"""The names on the way to a parameter, such as `backbone/stack/layer_3/mlp/up/kernel`, and what a path says.

Layers stand in a stack as `layer_0`, `layer_1`, ...; scanned ones are `layers`, and the first axis of each array
is the layer; a layer that all share is `shared_layer`. Interop writes paths with `{i}` for a layer's number.
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
# Tables of biases on attention scores: a scalar for each head and distance.
RELATIVE_BIAS, CROSS_RELATIVE_BIAS = "relative_bias", "cross_relative_bias"
# What stands below the lowest layer: the token table, positions and types with their norm, and the projection from a
# factorised table's width to the model's.
BELOW_LAYERS = frozenset({EMBEDDING, INPUTS_NAME, "project_in"})

_SINGLE = re.compile(rf"{UNROLLED}(\d+)|{SHARED}")
# Where the inputs and where the outputs of an attention kernel begin among its last axes.
_HEADS = {"query": (-3, -2), "key": (-3, -2), "value": (-3, -2), "out": (-3, -1)}


class Layer(NamedTuple):
    """The layer that a parameter belongs to.

    Attributes:
        stack: the path of its stack.
        number: its number in the stack, 0 for a layer that all share; None: the parameter holds all layers, scanned.
    """

    stack: Names
    number: int | None


def names_of(path: tuple) -> Names:
    """Returns the names of a path in a tree of parameters: the dictionary keys alone, whatever lies around them."""
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def map_named(f: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Returns `f(names, leaf, ...)` of every leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: f(names_of(path), *leaves), tree, *rest)


def layer_of(names: Names) -> Layer | None:
    """Returns the layer that a parameter belongs to; None outside of layers."""
    for i, name in enumerate(names):
        if name == SCANNED:
            return Layer(names[:i], None)
        if found := _SINGLE.fullmatch(name):
            return Layer(names[:i], int(found[1] or 0))
    return None


def layer_paths(path: str) -> Callable[[int], str] | None:
    """Returns the path in an unrolled model, by layer, of a parameter that a scanned one stacks; None if it does not.

    Args:
        path: names joined by slashes.
    """
    names = path.split("/")
    if SCANNED not in names:
        return None
    place = names.index(SCANNED)
    return lambda layer: "/".join([*names[:place], f"{UNROLLED}{layer}", *names[place + 1 :]])


def is_scanned(names: Names) -> bool:
    """Returns whether a parameter is that of many layers, along its first axis."""
    return SCANNED in names


def is_matrix(names: Names) -> bool:
    """Returns whether a parameter, in each layer, is a matrix: a kernel or an embedding, no vector and no bias."""
    return names[-1] in ("kernel", "table") and not is_bias_table(names)


def is_bias_table(names: Names) -> bool:
    """Returns whether a parameter is a table of biases on attention scores (Raffel et al. 2020, section 2.1)."""
    return len(names) > 1 and names[-2] in (RELATIVE_BIAS, CROSS_RELATIVE_BIAS)


def is_hidden_matrix(names: Names) -> bool:
    """Returns whether a parameter is a kernel of a layer: no embedding, head, router or vector."""
    return layer_of(names) is not None and names[-1] == "kernel" and "router" not in names


def matrix_shape(names: Names, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns a kernel's shape as `[matrices, inputs, outputs]`.

    Attention's kernels are `[embed, heads, head_dim]` and `[heads, head_dim, embed]`; scanned layers and experts stand
    in front, and each of them is a matrix of its own.
    """
    first, second = _HEADS.get(names[-2], (-2, -1)) if len(names) > 1 and len(shape) > 2 else (-2, -1)
    inputs, outputs = (int(np.prod(s)) for s in (shape[first : second or None], shape[second:]))
    return int(np.prod(shape[:first])), inputs, outputs
