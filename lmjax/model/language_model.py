"""LanguageModel: a family, its token table, and the heads that were asked for."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pydantic

from lmjax.model.cache import Cache
from lmjax.model.config import ModelConfig
from lmjax.model.families import Batch, make_backbone
from lmjax.model.groups import DropoutRates
from lmjax.model.heads import Head, head_types
from lmjax.model.heads.vocabulary import VocabularyHead
from lmjax.model.layers import Embed
from lmjax.model.transformer import unstack_layers
from lmjax.streams import prng_key

# Layers from which one that stands for all is traced sooner than all.
_MANY = 5


class LanguageModel(nn.Module):
    """A language model of any family.

    Attributes:
        config: the architecture.
        heads: names of `lmjax.model.heads.HEADS` that its family can have; without any, an encoder gives hidden states
            alone, and an encoder-decoder or a decoder has vocabulary logits.
    """

    config: ModelConfig
    heads: tuple[str, ...] = ()

    def setup(self) -> None:
        """Makes the parts; a part that is never called has no parameters."""
        config, types = self.config, self.head_types
        self.embedding = Embed(config, config.vocab_size, "vocab")
        self.backbone = make_backbone(config, self.embedding)
        self.parts = {name: head.build(config, self.embedding, self.backbone) for name, head in types.items()}
        for part in self.parts.values():
            if not part.subtree:
                nn.share_scope(self, part)

    @property
    def head_types(self) -> dict[str, type[Head]]:
        """The heads by name; raises ValueError for one that there is not, or that the family cannot have."""
        return head_types(self.config.architecture, self.heads)

    @property
    def has_vocabulary(self) -> bool:
        """Whether this model has vocabulary logits."""
        return any(issubclass(head, VocabularyHead) for head in self.head_types.values())

    def __call__(
        self, batch: Batch, *, deterministic: bool = True, dropout_rates: DropoutRates | None = None
    ) -> jax.Array:
        """Returns hidden states `[batch, length, embed]` of the side that predicts.

        Args:
            batch: the fields that `lmjax.model.families` lists for the family.
            deterministic: True: no dropout. False: needs an rng named "dropout" where a rate is not None.
            dropout_rates: traced rates; None: the config's.
        """
        if deterministic:
            return self.states(batch, DropoutRates())
        return self.states(batch, self.config.dropout.rates() if dropout_rates is None else dropout_rates)

    def states(self, batch: Batch, dropout_rates: DropoutRates) -> jax.Array:
        """Returns hidden states as a call does; without dropout where no rate is given."""
        return self.backbone(batch, dropout_rates)

    def extend(self, batch: Batch, cache: Cache) -> tuple[jax.Array, Cache]:
        """Returns hidden states `[batch, length, embed]` of tokens that go on from a cache, and the cache with them.

        Without dropout. An encoder-decoder reads its encoder's fields where the cache is empty, and only there.

        Args:
            batch: fields of a decoder (with the prefix `decoder_` in an encoder-decoder); `positions` say where in its
                row each token stands.
            cache: of `lmjax.model.cache.init_cache`.
        """
        return self.backbone.extend(batch, cache)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[..., vocab]` for hidden states `[..., embed]`, of all positions or a choice."""
        for part in self.parts.values():
            if isinstance(part, VocabularyHead):
                return part(hidden)
        raise ValueError(
            f"heads={self.heads}: an encoder has vocabulary logits with heads=('masked_lm',), a decoder with none"
        )

    def part(self, name: str) -> Head:
        """Returns a head; raises ValueError if this model lacks it."""
        if name not in self.parts:
            raise ValueError(f"heads={self.heads}: this model has no head {name!r}; name it there")
        return self.parts[name]

    def head(self, name: str, hidden: jax.Array, batch: Batch) -> jax.Array | tuple[jax.Array, ...]:
        """Returns what a head gives: an array, or a tuple in the order of its `outputs`.

        Args:
            name: of the head.
            hidden: `[batch, length, embed]`, of the side that predicts.
            batch: that they were computed from.
        """
        part = self.part(name)
        return part(hidden, *(batch.get(field) for field in part.reads))

    def outputs(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns every output of this model by name, without dropout: what initialisation calls."""
        result = {"hidden": (hidden := self(batch))}
        for name, part in self.parts.items():
            result |= part.named(self.head(name, hidden, batch))
        return result


def init_params(model: LanguageModel, rng: jax.Array) -> dict[str, Any]:
    """Returns the parameters of `model`, boxed with their axis names; pure, so jit and eval_shape take it."""
    tokens = jnp.zeros((1, min(2, model.config.max_length)), jnp.int32)
    batch = {f"{side.prefix}tokens": tokens for side in model.config.family.sides}
    # No rules: a batch of one row cannot be split over a mesh. Where the parameters go is the caller's `out_shardings`.
    with nn.logical_axis_rules(()):
        return model.init(rng, batch, method=LanguageModel.outputs)["params"]


@functools.lru_cache(maxsize=8)
def abstract_params(config: ModelConfig, heads: tuple[str, ...]) -> dict[str, Any]:
    """Returns the shapes of the parameters, boxed with their axis names; not to be changed, for they are kept.

    Opening a model asks several times, and tracing all layers takes longer than reading their numbers. So only one
    layer is traced, where all are alike.
    """

    def make(config: ModelConfig) -> dict[str, Any]:
        return jax.eval_shape(lambda: init_params(LanguageModel(config, heads), prng_key(0, "shapes of a checkpoint")))

    if config.scan_layers or config.share_layers or config.num_layers < _MANY:
        return make(config)
    try:
        scanned = ModelConfig.model_validate(config.model_dump() | {"scan_layers": True})
    except pydantic.ValidationError:
        return make(config)
    return jax.eval_shape(unstack_layers, make(scanned))
