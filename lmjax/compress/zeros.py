"""Unstructured pruning: numbers of kernels that become zero, by their size or by what the inputs of a kernel are.

Two of four inputs of each output can be kept (2:4, Mishra et al. 2021, arXiv:2104.08378, section 3), in place of a
share of all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compress.calibrate import Inputs
from lmjax.compress.solve import factor, solve
from lmjax.model.parameter_paths import input_axes, is_hidden_matrix
from lmjax.model.parameters import flat, unflat
from lmjax.model.quantized import as_matrices

PyTree = Any
Scope = Literal["layer", "global"]


class Zeros(NamedTuple):
    """Which numbers become zero.

    Attributes:
        amount: the share of a kernel's numbers; half for pairs.
        pairs: whether two of each four consecutive inputs of an output are kept.
        scope: whether each kernel gets this share, or all kernels in layers together; for `magnitude`.
    """

    amount: float = 0.5
    pairs: bool = False
    scope: Scope = "layer"


def kept_pairs(scores: np.ndarray) -> np.ndarray:
    """Returns which numbers are kept, bool `[inputs, outputs]`: of four inputs, the two of the highest scores."""
    fours = scores.reshape(-1, 4, scores.shape[1])
    ranks = np.argsort(np.argsort(-fours, axis=1, kind="stable"), axis=1, kind="stable")
    return (ranks < 2).reshape(scores.shape)


def kept(scores: np.ndarray, zeros: Zeros) -> np.ndarray:
    """Returns which numbers of a matrix are kept, bool `[inputs, outputs]`: all but the lowest scores."""
    if zeros.pairs:
        return kept_pairs(scores)
    found = np.ones(scores.size, bool)
    found[np.argsort(scores, axis=None, kind="stable")[: round(zeros.amount * scores.size)]] = False
    return found.reshape(scores.shape)


def magnitude(params: PyTree, zeros: Zeros) -> PyTree:
    """Returns parameters whose smallest numbers in the kernels of layers are zero (Han et al. 2015, arXiv:1506.02626).

    Args:
        params: scanned or unrolled.
        zeros: how many.
    """
    whole = flat(params)
    chosen = {path: np.asarray(x, np.float32) for path, x in whole.items() if is_hidden_matrix(tuple(path.split("/")))}
    if zeros.scope == "global" and not zeros.pairs:
        sizes = np.concatenate([np.abs(x).ravel() for x in chosen.values()])
        every = kept(sizes[:, None], zeros)[:, 0]
        ends = np.cumsum([x.size for x in chosen.values()])[:-1]
        masks = {p: m.reshape(chosen[p].shape) for p, m in zip(chosen, np.split(every, ends), strict=True)}
    else:
        masks = {}
        for path, x in chosen.items():
            matrices = np.asarray(as_matrices(x, input_axes(tuple(path.split("/")), x.ndim)))
            flattened = np.abs(matrices).reshape(-1, *matrices.shape[-2:])
            masks[path] = np.stack([kept(each, zeros) for each in flattened]).reshape(x.shape)
    return unflat({path: jnp.where(masks[path], x, 0) if path in masks else x for path, x in whole.items()})


def by_wanda(zeros: Zeros) -> Callable[..., jax.Array]:
    """Returns the change that Wanda makes: the scores |W| times the norm of its input, compared within each output.

    Sun et al. 2024, arXiv:2306.11695, section 3.
    """

    def change(kernel: jax.Array, axes: tuple[int, ...], inputs: Inputs) -> jax.Array:
        matrix = np.asarray(as_matrices(kernel, axes), np.float64)
        scores = np.abs(matrix) * np.sqrt(inputs.squares)[:, None]
        masks = kept_pairs(scores) if zeros.pairs else np.hstack([kept(column[:, None], zeros) for column in scores.T])
        return jnp.asarray((matrix * masks).reshape(kernel.shape), jnp.float32)

    return change


def by_sparsegpt(zeros: Zeros) -> Callable[..., jax.Array]:
    """Returns the change that SparseGPT makes: numbers of inputs that come later make up for those that become zero.

    Frantar and Alistarh 2023, arXiv:2301.00774, section 3 and algorithm 1; scores are compared within blocks of inputs.
    """

    def fix(start: int, stop: int, numbers: np.ndarray, diagonal: np.ndarray) -> Callable[..., np.ndarray]:
        del stop
        # Of pairs, the scores are those when the first of the four inputs is decided.
        masks = np.ones(numbers.shape, bool) if zeros.pairs else kept((numbers / diagonal[:, None]) ** 2, zeros)

        def row(i: int, own: np.ndarray) -> np.ndarray:
            i -= start
            if zeros.pairs and i % 4 == 0:
                masks[i : i + 4] = kept_pairs((numbers[i : i + 4] / diagonal[i : i + 4, None]) ** 2)
            return own * masks[i]

        return row

    def change(kernel: jax.Array, axes: tuple[int, ...], inputs: Inputs) -> jax.Array:
        matrix = np.asarray(as_matrices(kernel, axes), np.float64)
        return jnp.asarray(solve(matrix, factor(inputs.products), fix).reshape(kernel.shape), jnp.float32)

    return change


def share_of_zeros(params: PyTree) -> float:
    """Returns the share of zeros among the numbers of the kernels in layers."""
    kernels = [x for path, x in flat(params).items() if is_hidden_matrix(tuple(path.split("/")))]
    counts = [int(jnp.sum(x.astype(jnp.float32) == 0)) for x in kernels]
    return sum(counts) / sum(int(np.prod(x.shape)) for x in kernels)
