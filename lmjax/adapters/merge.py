"""A model without an adapter that computes what a model with one computes, up to rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from lmjax.adapters.config import AdapterConfig
from lmjax.adapters.forms import FORMS, NAMES
from lmjax.model.parameter_paths import SCANNED

PyTree = Any


def merged(params: PyTree, adapter: AdapterConfig) -> PyTree:
    """Returns the parameters of the plain model, given all parameters of a model with an adapter.

    A token table that is also the output layer stays one table: its adapter changes the look-up and the logits alike,
    and so does the merged table.
    """
    return jax.jit(lambda params: _merged(params, adapter, ()))(params)


def _merged(params: PyTree, adapter: AdapterConfig, path: tuple[str, ...]) -> PyTree:
    if not NAMES.isdisjoint(params):
        name = "kernel" if "kernel" in params else "table"
        experts = "moe" in path and path[-1] != "router"
        return FORMS[adapter.kind](adapter).merged(params, name, int(SCANNED in path) + experts)
    return {n: _merged(x, adapter, (*path, n)) if isinstance(x, Mapping) else x for n, x in params.items()}
