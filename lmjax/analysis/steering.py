"""Steering: a direction in the residual stream that is added while a model reads and writes.

The direction is the difference of the mean residual streams of two sets of texts (Marks and Tegmark 2023,
arXiv:2310.06824, section 5; Rimsky et al. 2023, arXiv:2312.06681, section 3). A steered model is a `LoadedModel`, so
every function of `lmjax.inference` takes it:

    way = direction(model, ["I love it", "What joy"], ["I hate it", "What pain"], layer=6)
    happy = steer(model, {"layer_6": 4.0 * way})
    generate(happy, ["The weather is"])
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

from lmjax.analysis.inside import record
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.texts import Text
from lmjax.model import intercept
from lmjax.model.language_model import LanguageModel

PyTree = Any

# A leaf at the top of the parameters: by name of the activation what is added to it, `[embed]`.
_ADDED = "steering"


def direction(
    loaded: LoadedModel,
    texts: Sequence[Text],
    others: Sequence[Text],
    layer: int,
    *,
    tokens: Literal["last", "mean"] = "last",
) -> np.ndarray:
    """Returns float32 `[embed]`: the mean residual stream after a layer of some texts, minus that of others.

    Args:
        loaded: the model; of an encoder-decoder, its encoder is read.
        texts: what the direction leads to.
        others: what it leads away from.
        layer: number of the layer.
        tokens: the residual stream of the last token of a text, or the mean of all of its tokens.

    Raises:
        FlagError: there is no such layer, or the model cannot read a text.
    """
    side = "encoder_" if loaded.config.family.paired else ""
    name = f"{side.replace('_', '/')}layer_{layer}"

    def mean(listed: Sequence[Text]) -> np.ndarray:
        if not len(listed):
            raise FlagError("a direction needs at least one text on each side")
        x = record(loaded, list(listed), [name])[name]
        real = loaded.rows(list(listed))[f"{side}segment_ids"][: len(x)] > 0
        if tokens == "last":
            real = real & (np.arange(real.shape[1]) == real.sum(axis=1, keepdims=True) - 1)
        return np.mean([row[mask].mean(axis=0) for row, mask in zip(x, real, strict=True)], axis=0)

    return np.asarray(mean(texts) - mean(others), np.float32)


def steer(loaded: LoadedModel, added: Mapping[str, np.ndarray]) -> LoadedModel:
    """Returns the model with vectors added to activations, at every token that it reads or writes.

    Args:
        loaded: the model.
        added: `[embed]` by name of the activation, such as "layer_6" (`lmjax.model.intercept` lists them).

    Raises:
        FlagError: there is no such activation, or a vector has another width.
    """
    texts = [[0]]
    for name, vector in added.items():
        found = record(loaded, texts, [name])[name]
        if found.shape[-1:] != np.shape(vector):
            raise FlagError(f"{name!r} is {found.shape[-1]} wide, and its vector has the shape {np.shape(vector)}")
    model = loaded.model
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in ("parent", "name")}
    everywhere = jax.sharding.NamedSharding(loaded.mesh, jax.sharding.PartitionSpec())
    vectors = {name: jax.device_put(np.asarray(x, np.float32), everywhere) for name, x in added.items()}
    return dataclasses.replace(loaded, model=_steered(type(model))(**fields), params={**loaded.params, _ADDED: vectors})


@functools.cache
def _steered(base: type[LanguageModel]) -> type[LanguageModel]:
    """Returns a class of models whose parameters include vectors that are added to activations."""

    class Steered(base):
        """A model that adds vectors to its activations; programs are compiled for it as for any other model."""

        @nn.nowrap
        def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
            """Returns what `nn.Module.apply` returns, given all parameters in one tree."""
            params = dict(variables["params"])
            vectors = params.pop(_ADDED, {})
            changes = {
                name: lambda x, vector=vector: x + vector.astype(x.dtype).reshape(*(1,) * (x.ndim - 1), -1)
                for name, vector in vectors.items()
            }
            with intercept.replacing(changes):
                return super().apply({**variables, "params": params}, *args, **kwargs)

    return Steered
