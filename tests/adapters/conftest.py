"""Tiny models of each family with an adapter whose numbers are random, so that it changes every output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.adapters.config import AdapterConfig
from lmjax.adapters.model import abstract_adapter, make_model
from lmjax.model.heads import head_types
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameters import overlaid, unboxed
from lmjax.model.presets import PRESETS

TINY = {"vocab_size": 48, "embed_dim": 16, "num_heads": 2, "mlp_dim": 24, "num_layers": 2, "max_length": 32}


@pytest.fixture(scope="session")
def adapted():
    """A function that returns a plain model, its parameters, the adapted model, and all of its parameters."""

    def make(architecture="decoder", adapter=None, heads=(), **fields):
        config = PRESETS[f"nano_{architecture}"].with_fields(TINY | fields)
        heads = heads or tuple(head_types(architecture, ()))
        adapter = AdapterConfig(**{"kind": "lora", "rank": 3, **(adapter or {})})
        plain, model = LanguageModel(config, heads), make_model(config, heads, adapter)
        base = unboxed(init_params(plain, jax.random.key(0)))
        rng = np.random.default_rng(0)
        shapes = unboxed(abstract_adapter(model))
        own = jax.tree.map(lambda s: jnp.asarray(1 + 0.3 * rng.normal(size=s.shape), s.dtype), shapes)
        return plain, base, model, overlaid(base, own)

    return make


@pytest.fixture(scope="session")
def batch():
    """A function from a model to a batch of three rows with padding."""

    def make(model, rows=3):
        rng, fields = np.random.default_rng(2), {}
        for side in model.config.family.sides:
            tokens = rng.integers(1, 48, size=(rows, 7)).astype(np.int32)
            segments = np.ones_like(tokens)
            segments[0, 5:] = 0
            fields |= {f"{side.prefix}tokens": tokens, f"{side.prefix}segment_ids": segments}
        return fields

    return make
