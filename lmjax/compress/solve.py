"""GPTQ and SparseGPT: an input's numbers become codes or zeros, and those of later inputs make up for the error.

With the kernel W `[inputs, outputs]` and H = X^T X of its inputs X, the error of the outputs is tr(D^T H D) for a
change D of W. Once the numbers of an input are fixed, the best change of the others follows from the inverse of H
(Frantar et al. 2022, arXiv:2210.17323, section 3; Frantar and Alistarh 2023, arXiv:2301.00774, section 3). All but the
rounding is computed on the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.model.codes import FORMS
from lmjax.model.quantized import QuantizationConfig, Quantized, of_codes, scales_of

# Of the mean of H's diagonal, added to it, as in both papers.
DAMPING = 0.01
# Inputs whose updates are applied to later inputs by one product (Frantar et al. 2022, section 3.3, step 2).
_BLOCK = 128
# From a first and a last input, their numbers, and the deviations of their errors, to the kept ones.
Fix = Callable[[int, int, np.ndarray, np.ndarray], Callable[[int, np.ndarray], np.ndarray]]


def factor(products: np.ndarray) -> np.ndarray:
    """Returns the upper triangular U `[inputs, inputs]` with U^T U the inverse of the damped H."""
    damped = np.array(products, np.float64)
    diagonal = np.einsum("ii->i", damped)
    # An input that is always zero has no influence; its numbers are rounded as they are.
    diagonal[diagonal == 0] = 1.0
    diagonal += DAMPING * diagonal.mean()
    return np.linalg.cholesky(np.linalg.inv(damped)).T


def solve(matrix: np.ndarray, upper: np.ndarray, fix: Fix, block: int = _BLOCK) -> np.ndarray:
    """Returns the numbers that a kernel gets, `[inputs, outputs]`, float64.

    Args:
        matrix: the kernel `[inputs, outputs]`.
        upper: what `factor` returns.
        fix: called with each block of inputs, its numbers at that time and its part of `upper`'s diagonal; returns a
            function from the number of an input, and its numbers at that time, to the numbers that it gets.
        block: the most inputs of a block.
    """
    left, found = np.array(matrix, np.float64), np.empty(matrix.shape)
    for start in range(0, len(left), block):
        stop = min(start + block, len(left))
        kept = fix(start, stop, left[start:stop], np.diag(upper)[start:stop])
        errors = np.empty((stop - start, left.shape[1]))
        for i in range(start, stop):
            found[i] = kept(i, left[i])
            errors[i - start] = (left[i] - found[i]) / upper[i, i]
            left[i + 1 : stop] -= np.outer(upper[i, i + 1 : stop], errors[i - start])
        left[stop:] -= upper[start:stop, stop:].T @ errors
    return found


def gptq(matrix: np.ndarray, products: np.ndarray, config: QuantizationConfig, core: tuple[int, ...]) -> Quantized:
    """Returns a kernel in few bits whose errors on its inputs make up for each other.

    A group's scales are those of its numbers when the first of them is rounded.

    Args:
        matrix: the kernel `[inputs, outputs]`.
        products: H, `[inputs, inputs]`.
        config: the form.
        core: the shape of the kernel.
    """
    group = config.group or len(matrix)
    scales = np.array(scales_of(jnp.asarray(matrix, jnp.float32), config.group, config.weights))
    codes: list[np.ndarray] = []

    def fix(start: int, stop: int, numbers: np.ndarray, diagonal: np.ndarray) -> Callable[..., np.ndarray]:
        del stop, diagonal

        def kept(i: int, row: np.ndarray) -> np.ndarray:
            if config.group and i % group == 0:
                # By now the errors of all inputs before are in these numbers.
                inside = jnp.asarray(numbers[i - start : i - start + group], jnp.float32)
                scales[i // group] = scales_of(inside, 0, config.weights)[0]
            code, value = _rounded(jnp.asarray(row, jnp.float32), jnp.asarray(scales[i // group]), config.weights)
            codes.append(np.asarray(code))
            return np.asarray(value, np.float64)

        return kept

    solve(matrix, factor(products), fix, group * max(1, _BLOCK // group) if config.group else _BLOCK)
    return of_codes(jnp.asarray(np.stack(codes)), jnp.asarray(scales), core, config)


@functools.partial(jax.jit, static_argnums=2)
def _rounded(row: jax.Array, scales: jax.Array, form: str) -> tuple[jax.Array, jax.Array]:
    """Returns the nearest codes of numbers, and the codes' numbers."""
    codes = FORMS[form].nearest(row / scales)
    return codes, FORMS[form].value(codes) * scales
