"""AWQ and SmoothQuant: factors on the inputs of a kernel, with which less is lost when it is rounded.

The inputs are multiplied by a factor and the kernel is divided by it, so that the product stays the same. The factors
are kept beside the codes (`Quantized.factors`), and not in the layer before, as in the papers: so they need no such
layer, and fit any structure of a block.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compress.calibrate import Inputs
from lmjax.model.quantized import QuantizationConfig, Quantized, as_matrices, quantized

# Strengths that AWQ tries (Lin et al. 2024, section 3.2).
_STRENGTHS = tuple(np.linspace(0, 1, 11)[:-1].tolist())


def error(products: jax.Array, change: jax.Array) -> jax.Array:
    """Returns tr(D^T H D), the summed squared error of the outputs, for a change D `[inputs, outputs]` of a kernel."""
    return jnp.sum(change * jnp.matmul(products, change))


def awq(kernel: jax.Array, axes: tuple[int, ...], inputs: Inputs, config: QuantizationConfig) -> Quantized:
    """Returns a kernel in few bits, with the factors of least error among powers of the inputs' mean size.

    Lin et al. 2024, arXiv:2306.00978, section 3.2, equations 4 and 5.

    Args:
        kernel: of any shape.
        axes: those that a product sums over.
        inputs: what its inputs are.
        config: the form.
    """
    sizes = np.maximum(inputs.sizes / inputs.count, 1e-8)
    products = jnp.asarray(inputs.products / inputs.count, jnp.float32)
    tried = [_tried(_balanced(sizes**-strength), kernel, products, axes, config) for strength in _STRENGTHS]
    return min(tried, key=lambda each: float(each[1]))[0]


@functools.partial(jax.jit, static_argnums=(3, 4))
def _tried(
    factors: jax.Array, kernel: jax.Array, products: jax.Array, axes: tuple[int, ...], config: QuantizationConfig
) -> tuple[Quantized, jax.Array]:
    """Returns a kernel in few bits with given factors, and the error of its outputs; kernels alike share a program."""
    found = quantized(kernel, axes, config, factors)
    return found, error(products, as_matrices(found.astype(jnp.float32), axes) - as_matrices(kernel, axes))


def smooth(
    kernel: jax.Array, axes: tuple[int, ...], inputs: Inputs, config: QuantizationConfig, strength: float = 0.5
) -> Quantized:
    """Returns a kernel in few bits whose inputs have fewer outliers, which are in the kernel instead.

    Xiao et al. 2023, arXiv:2211.10438, section 4, equation 4.

    Args:
        kernel: of any shape.
        axes: those that a product sums over.
        inputs: what its inputs are.
        config: the form.
        strength: how much of the outliers goes to the kernel; 0.5: half, in logarithms.
    """
    widest = np.maximum(np.asarray(jnp.max(jnp.abs(as_matrices(kernel, axes)), axis=-1), np.float64), 1e-8)
    largest = np.maximum(inputs.largest, 1e-8)
    return quantized(kernel, axes, config, _balanced(widest ** (1 - strength) / largest**strength))


def _balanced(factors: np.ndarray) -> jax.Array:
    """Returns factors with a geometric mean of 1 between the least and the largest, as AWQ's code does."""
    return jnp.asarray(factors / np.sqrt(factors.max() * factors.min()), jnp.float32)
