"""Tiny models shared by the tests of the model layer."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from lmjax.model.config import ModelConfig
from lmjax.model.groups import RopeConfig
from lmjax.model.language_model import LanguageModel, init_params

TINY = {"vocab_size": 64, "embed_dim": 16, "num_heads": 4, "mlp_dim": 24, "num_layers": 2, "max_length": 16}


@functools.cache
def _build(architecture, heads, fields):
    config = ModelConfig(**(TINY | {"architecture": architecture, "rope": RopeConfig(theta=100.0)} | dict(fields)))
    model = LanguageModel(config, heads)
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    rng = np.random.default_rng(0)
    # With zero biases, unit scales and small kernels, a layer that is missing or misplaced would change nothing.
    return model, jax.tree.map(lambda leaf: rng.normal(0.1, 0.4, leaf.shape).astype(np.float32), shapes)


@pytest.fixture
def build():
    """Returns a function from (architecture, heads, **fields) to a tiny model and plain, noisy parameters."""
    return lambda architecture, heads=(), **fields: _build(architecture, heads, tuple(sorted(fields.items())))


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def _forward(model, params, batch, method=None):
    return model.apply({"params": params}, batch, method=method)


@pytest.fixture
def forward():
    """Returns a function (model, params, batch, method=None), compiled once for each model and shape."""
    return _forward


@pytest.fixture(autouse=True)
def _no_silent_promotion():
    """Makes a product of two different dtypes an error, so that no product has another precision than the code says.

    This holds for the model only: optax raises float32 rates to the power of integer counts.
    """
    with jax.numpy_dtype_promotion("strict"):
        yield
