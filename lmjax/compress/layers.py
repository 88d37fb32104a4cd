"""Methods that treat the kernels of one layer after the other, by what the inputs of each are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compress.calibrate import Batch, Inputs, layers, observe
from lmjax.compress.factors import awq, smooth
from lmjax.compress.solve import gptq
from lmjax.inference.loaded import LoadedModel
from lmjax.model.parameter_paths import input_axes
from lmjax.model.parameters import flat, unflat
from lmjax.model.quantized import QuantizationConfig, Quantized, as_matrices

PyTree = Any
# From a kernel, the axes that a product sums over, and what its inputs are, to what replaces it.
Change = Callable[[jax.Array, tuple[int, ...], Inputs], jax.Array | Quantized]


def changed(loaded: LoadedModel, given: Sequence[Batch], change: Change) -> PyTree:
    """Returns the parameters with each kernel in a layer changed.

    The inputs of a layer are computed with the changed kernels of all layers before it, so that it makes up for their
    errors too (Frantar et al. 2022, section 4, "Setup").

    Args:
        loaded: the model.
        given: batches of texts.
        change: of a kernel.
    """
    whole = flat(loaded.params)
    result = dict(whole)
    for layer in layers(loaded.params):
        for path, inputs in observe(loaded, unflat(whole), given, [layer]).items():
            axes = input_axes(tuple(path.split("/")), whole[path].ndim)
            result[path] = change(jnp.asarray(whole[path], jnp.float32), axes, inputs)
            whole[path] = result[path].astype(whole[path].dtype)
    return unflat(result)


def by_gptq(config: QuantizationConfig) -> Change:
    """Returns the change that GPTQ makes."""

    def change(kernel: jax.Array, axes: tuple[int, ...], inputs: Inputs) -> Quantized:
        return gptq(np.asarray(as_matrices(kernel, axes)), inputs.products, config, kernel.shape)

    return change


def by_awq(config: QuantizationConfig) -> Change:
    """Returns the change that AWQ makes."""
    return lambda kernel, axes, inputs: awq(kernel, axes, inputs, config)


def by_smoothing(config: QuantizationConfig) -> Change:
    """Returns the change that SmoothQuant makes."""
    return lambda kernel, axes, inputs: smooth(kernel, axes, inputs, config)
