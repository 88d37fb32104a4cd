"""Rows of the token table without a token, which make it divide over devices: GPT-2 has 50,257 tokens, a prime.

They are the last rows. Their logits are the same large negative number, so that no loss, probability or sample ever
has a part in them, and they get no gradient.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from lmjax.model.config import ModelConfig
from lmjax.model.language_model import abstract_params
from lmjax.model.parameters import axis_names, flat, unflat


def padded(config: ModelConfig, multiple: int) -> ModelConfig:
    """Returns the config with the fewest rows without a token that make the rows a multiple; 1: without such rows."""
    tokens = config.vocab_size - config.embedding.padding
    padding = -tokens % multiple
    return config.with_fields({"vocab_size": tokens + padding, "embedding.padding": padding})


def resized(params: Any, config: ModelConfig, heads: tuple[str, ...]) -> Any:
    """Returns parameters on the host with as many rows as a config has: cut, or padded with zeros.

    Args:
        params: arrays, in the form of the config except for these rows.
        config: the config.
        heads: of the model.
    """
    boxed = abstract_params(config, heads)
    names, wanted = axis_names(boxed), flat(boxed)

    def resize(path: str, x: Any) -> np.ndarray:
        x = np.asarray(jax.device_get(x))
        for axis, name in enumerate(names.get(path, ())):
            if name == "vocab":
                rows = wanted[path].shape[axis]
                x = np.take(x, range(min(rows, x.shape[axis])), axis)
                x = np.pad(x, [(0, rows - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])
        return x

    return unflat({path: resize(path, x) for path, x in flat(params).items()})
