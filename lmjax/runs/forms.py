"""The form of kernels, as a trained model keeps them and as its reader wants them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from lmjax.model.config import ModelConfig
from lmjax.model.quantized import in_full, quantize_layers

PyTree = Any
# Reads the parameters of a model, given a config, which may differ in `scan_layers`, in dtype and in the form of
# kernels, and a mesh.
ReadParams = Callable[[ModelConfig, jax.sharding.Mesh], PyTree]


def in_form(params: ReadParams, own: ModelConfig) -> ReadParams:
    """Returns a function that reads parameters with their kernels in the form that its config asks for.

    Args:
        params: reads them in the form of `own`.
        own: the model's config.
    """

    def read(wanted: ModelConfig, mesh: jax.sharding.Mesh) -> PyTree:
        there, here = own.quantization, wanted.quantization
        found = params(wanted.with_fields({"quantization": there}), mesh)
        if there.simulated and here.weights == "none":
            # Numbers that compute without rounding what these compute with it.
            found = quantize_layers(found, there)
        if there != here:
            found = in_full(found, wanted.param_dtype)
        return quantize_layers(found, here) if here.stored and there != here else found

    return read
