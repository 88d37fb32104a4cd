"""Groups of parameters: which ones decay, and the factors on their learning rates, 0 for frozen ones."""

from __future__ import annotations

import difflib
import re
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.errors import FlagError
from lmjax.model.parameter_paths import (
    BELOW_LAYERS,
    is_bias_table,
    is_matrix,
    layer_of,
    map_named,
    names_of,
    shrinks_with_width,
)
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig

PyTree = Any


def decay_mask(params: PyTree) -> PyTree:
    """Returns True for the parameters that weight decay applies to: the matrices and embeddings.

    It does not apply to vectors (biases, scales of norms, sink logits) and tables of biases on attention scores.
    """
    return map_named(lambda names, _: is_matrix(names), params)


def _group(config: OptimizerConfig, names: tuple[str, ...]) -> int | None:
    """Returns the number of the first pattern that matches a path, or None."""
    path = "/".join(names)
    return next((i for i, pattern in enumerate(config.group_patterns) if re.search(pattern, path)), None)


def is_frozen(config: OptimizerConfig, names: tuple[str, ...]) -> bool:
    """Returns whether a parameter is frozen: its group's factor is 0."""
    group = _group(config, names)
    return group is not None and config.group_factors[group] == 0


def zero_frozen(config: OptimizerConfig, grads: PyTree) -> PyTree:
    """Returns the gradients with zeros for frozen parameters, so that norms leave them out and XLA removes them."""
    return map_named(lambda names, g: jnp.zeros_like(g) if is_frozen(config, names) else g, grads)


def check_groups(config: OptimizerConfig, params: PyTree) -> None:
    """Raises FlagError for a pattern that matches no parameter, and if all parameters are frozen."""
    paths = ["/".join(names_of(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in config.group_patterns:
        if not any(re.search(pattern, path) for path in paths):
            # The path with the longest common substring, because a pattern is rarely a whole path.
            near = max(paths, key=lambda p: difflib.SequenceMatcher(None, pattern, p).find_longest_match().size)
            raise FlagError(
                f"--config.optimizer.group_patterns: {pattern!r} matches no parameter; the nearest is {near} "
                "(--print_config lists all)"
            )
    if all(is_frozen(config, tuple(path.split("/"))) for path in paths):
        raise FlagError("--config.optimizer.group_factors freezes every parameter; leave one above 0")


def rate_factors(config: OptimizerConfig, h: Hyperparameters, tree: PyTree) -> PyTree:
    """Returns the factor on the learning rate of every parameter, in a shape that broadcasts with the parameter.

    With `layer_decay` d, the parameters of a layer with n layers above it in its stack get d**(n + 1). Embeddings and
    other parameters below the layers get one factor d more than the lowest layer, heads and final norms get 1, and
    biases on attention scores that all layers share get the factor of the lowest layer (Howard and Ruder 2018,
    arXiv:1801.06146, section 3.2; Clark et al. 2020, arXiv:2003.10555, section 3.4, whose code treats the projection
    of small embeddings like the embeddings).

    With muP, kernels have the factor 1 / m in a model that is m times as wide as its base (Yang et al. 2022,
    arXiv:2203.03466, table 3).
    """
    counts = _layer_counts(tree)

    def factor(names: tuple[str, ...], leaf: jax.Array) -> jax.Array:
        group = _group(config, names)
        result = jnp.ones(()) if group is None else h.optimizer.group_factors[group]
        if h.width_factor is not None and shrinks_with_width(names):
            result = result / h.width_factor
        if config.layer_decay == 1:
            return result
        return result * h.optimizer.layer_decay ** _depth(names, leaf, counts)

    return map_named(factor, tree)


def _layer_counts(tree: PyTree) -> dict[tuple[str, ...], int]:
    """Returns the number of layers of every stack."""
    counts: dict[tuple[str, ...], int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if (layer := layer_of(names_of(path))) is not None:
            count = leaf.shape[0] if layer.number is None else layer.number + 1
            counts[layer.stack] = max(counts.get(layer.stack, 0), count)
    return counts


def _depth(names: tuple[str, ...], leaf: jax.Array, counts: dict[tuple[str, ...], int]) -> jax.Array:
    """Returns how many factors of layer decay a parameter gets; for scanned layers, `[layers, 1, ...]`."""
    layer = layer_of(names)
    if layer is None:
        if is_bias_table(names):
            return jnp.float32(counts.get(names[:-2], 0))
        return jnp.float32(max(counts.values(), default=0) + 1 if BELOW_LAYERS & set(names) else 0)
    if layer.number is None:
        depths = jnp.arange(counts[layer.stack], 0, -1, dtype=jnp.float32)
        return depths.reshape(-1, *(1,) * (leaf.ndim - 1))
    return jnp.float32(counts[layer.stack] - layer.number)
