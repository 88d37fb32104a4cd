"""Parameters by their paths: which are matrices of a layer, which decay, which learn slower, which not at all."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import FlagError
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig

PyTree = Any
_SCANNED = "layers"
# A layer of its own: one of many in turn, or the one that all share.
_SINGLE = re.compile(r"layer_(\d+)|shared_layer")
# Tables that are biases on attention scores, a scalar for each head and distance, and no vectors of anything.
_BIAS_TABLES = ("relative_bias", "cross_relative_bias")
# What stands before the lowest layer: the token table, positions and types with their norm, and the way from a
# factorised table's width to the model's.
_BELOW = {"embedding", "inputs", "project_in"}


def names_of(path: tuple) -> tuple[str, ...]:
    """Returns the names of a path in a tree of parameters: dictionary keys alone, whatever lies around them."""
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def map_named(f: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Returns `f(names, leaf, ...)` of every leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: f(names_of(path), *leaves), tree, *rest)


def is_scanned(names: tuple[str, ...]) -> bool:
    """Returns whether a parameter is that of many layers, along its first axis."""
    return _SCANNED in names


def is_matrix(names: tuple[str, ...]) -> bool:
    """Returns whether a parameter, in each layer, is a matrix: a kernel or an embedding, no vector and no bias."""
    return names[-1] in ("kernel", "table") and not is_bias_table(names)


def is_bias_table(names: tuple[str, ...]) -> bool:
    """Returns whether a parameter is a table of biases on attention scores (Raffel et al. 2020, section 2.1)."""
    return len(names) > 1 and names[-2] in _BIAS_TABLES


def is_hidden_matrix(names: tuple[str, ...]) -> bool:
    """Returns whether a parameter is a kernel of a layer: no embedding, head, router or vector."""
    return _stack_of(names) is not None and names[-1] == "kernel" and "router" not in names


def matrix_shape(names: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns a kernel's shape as `[matrices, inputs, outputs]`.

    Attention's kernels are `[embed, heads, head_dim]` and `[heads, head_dim, embed]`; scanned layers and experts stand
    in front, and each of them is a matrix of its own.
    """
    split = {"query": (-3, -2), "key": (-3, -2), "value": (-3, -2), "out": (-3, -1)}
    first, second = split.get(names[-2] if len(names) > 1 else "", (-2, -1)) if len(shape) > 2 else (-2, -1)
    inputs, outputs = (int(np.prod(s)) for s in (shape[first : second or None], shape[second:]))
    return int(np.prod(shape[:first])), inputs, outputs


def decay_mask(params: PyTree) -> PyTree:
    """Returns True at the parameters that weight decay acts on: the matrices; no biases, scales of norms or sinks."""
    return map_named(lambda names, _: is_matrix(names), params)


def _group(config: OptimizerConfig, names: tuple[str, ...]) -> int | None:
    """Returns the number of the first pattern that matches a path, or None."""
    path = "/".join(names)
    return next((i for i, pattern in enumerate(config.group_patterns) if re.search(pattern, path)), None)


def is_frozen(config: OptimizerConfig, names: tuple[str, ...]) -> bool:
    """Returns whether a parameter is never changed."""
    group = _group(config, names)
    return group is not None and config.group_factors[group] == 0


def zero_frozen(config: OptimizerConfig, grads: PyTree) -> PyTree:
    """Returns the gradients, zero where nothing is learnt: norms leave these out, and nobody computes them."""
    return map_named(lambda names, g: jnp.zeros_like(g) if is_frozen(config, names) else g, grads)


def check_groups(config: OptimizerConfig, params: PyTree) -> None:
    """Raises FlagError for a pattern that no path matches, and if nothing is left to train."""
    paths = ["/".join(names_of(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in config.group_patterns:
        if not any(re.search(pattern, path) for path in paths):
            # The nearest is the path of which a part is most like the pattern: patterns are rarely whole paths.
            near = max(paths, key=lambda p: difflib.SequenceMatcher(None, pattern, p).find_longest_match().size)
            raise FlagError(
                f"--config.optimizer.group_patterns: {pattern!r} matches no parameter; the nearest is {near} "
                "(--print_config lists all)"
            )
    if all(is_frozen(config, tuple(path.split("/"))) for path in paths):
        raise FlagError("--config.optimizer.group_factors freezes every parameter; leave one above 0")


def rate_factors(config: OptimizerConfig, h: Hyperparameters, tree: PyTree) -> PyTree:
    """Returns what the learning rate of every parameter is multiplied by, in a shape that fits it.

    With `layer_decay` d, a layer with n layers above it in its stack gets d**(n + 1), and so do biases on attention
    scores that the layers share, as a part of the lowest; what stands before the layers, one factor more than the
    lowest; and what comes after them 1 (Howard and Ruder 2018, arXiv:1801.06146, section 3.2; Clark et al. 2020,
    arXiv:2003.10555, section 3.4, whose code counts the projection of small embeddings among these).
    """
    counts = _layer_counts(tree)

    def factor(names: tuple[str, ...], leaf: jax.Array) -> jax.Array:
        group = _group(config, names)
        result = jnp.ones(()) if group is None else h.group_factors[group]
        if config.layer_decay == 1:
            return result
        return result * h.layer_decay ** _depth(names, leaf, counts)

    return map_named(factor, tree)


def _stack_of(names: tuple[str, ...]) -> tuple[tuple[str, ...], str] | None:
    """Returns the path of the stack that a layer stands in and the layer's own name, or None outside."""
    found = [i for i, name in enumerate(names) if name == _SCANNED or _SINGLE.fullmatch(name)]
    return (names[: found[0]], names[found[0]]) if found else None


def _layer_counts(tree: PyTree) -> dict[tuple[str, ...], int]:
    """Returns the number of layers of every stack."""
    counts: dict[tuple[str, ...], int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if (place := _stack_of(names_of(path))) is not None:
            stack, name = place
            count = leaf.shape[0] if name == _SCANNED else _number(name) + 1
            counts[stack] = max(counts.get(stack, 0), count)
    return counts


def _depth(names: tuple[str, ...], leaf: jax.Array, counts: dict[tuple[str, ...], int]) -> jax.Array:
    """Returns how many factors of layer decay a parameter gets; `[layers, 1, ...]` for scanned layers."""
    place = _stack_of(names)
    if place is None:
        if is_bias_table(names):
            return jnp.float32(counts.get(names[:-2], 0))
        return jnp.float32(max(counts.values(), default=0) + 1 if _BELOW & set(names) else 0)
    stack, name = place
    if name == _SCANNED:
        depths = jnp.arange(counts[stack], 0, -1, dtype=jnp.float32)
        return depths.reshape(-1, *(1,) * (leaf.ndim - 1))
    return jnp.float32(counts[stack] - _number(name))


def _number(name: str) -> int:
    """Returns the number of a layer by its name."""
    return int(_SINGLE.fullmatch(name)[1] or 0)
