"""Several language models with one vocabulary as one model, whose logits are the means of theirs."""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.cache import Cache
from lmjax.model.config import ModelConfig
from lmjax.model.families import Batch
from lmjax.model.language_model import LanguageModel


class Ensemble(nn.Module):
    """The models read the same tokens, and the softmax of their mean logits is the geometric mean of what they predict.

    It has what generation needs of a `LanguageModel`. Its parameters are those of the members, under the names
    `members_0`, `members_1` and so on.

    Attributes:
        members: models of one family and one number of vocabulary rows; sizes and components may differ.
    """

    members: tuple[LanguageModel, ...]

    @property
    def config(self) -> ModelConfig:
        """The config of the first member."""
        return self.members[0].config

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads of the first member."""
        return self.members[0].heads

    @property
    def has_vocabulary(self) -> bool:
        """Whether all members have vocabulary logits."""
        return all(member.has_vocabulary for member in self.members)

    @nn.nowrap
    def empty_cache(self, batch: int, capacity: int, **settings: Any) -> Cache:
        """Returns an empty cache: the layers of the first member, then those of the second one, and so on."""
        caches = [member.empty_cache(batch, capacity, **settings) for member in self.members]
        return caches[0].replace(layers=tuple(layer for cache in caches for layer in cache.layers))

    def extend(self, batch: Batch, cache: Cache) -> tuple[jax.Array, Cache]:
        """Returns the hidden states of all members side by side, `[batch, length, sum of embed]`, and the new cache."""
        hidden, layers, begin = [], [], 0
        for member in self.members:
            end = begin + member.config.side_layers(True)
            states, new = member.extend(batch, cache.replace(layers=cache.layers[begin:end]))
            hidden.append(states)
            layers += new.layers
            begin = end
        # Positions and segments are those of the tokens, and so the same in all members.
        return jnp.concatenate(hidden, axis=-1), new.replace(layers=tuple(layers))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[..., vocab]`, the means of the members'."""
        ends = itertools.accumulate(member.config.embed_dim for member in self.members[:-1])
        parts = jnp.split(hidden, list(ends), axis=-1)
        found = [member.logits(part) for member, part in zip(self.members, parts, strict=True)]
        return sum(found) / len(found)
