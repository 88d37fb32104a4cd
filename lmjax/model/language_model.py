"""LanguageModel: token table, encoder or decoder (or both), and heads."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pydantic

from lmjax.model.cache import Cache, init_cache
from lmjax.model.config import ModelConfig
from lmjax.model.dropout import DropoutRates
from lmjax.model.families import Batch, make_backbone
from lmjax.model.heads import Head, head_types
from lmjax.model.heads.vocabulary import VocabularyHead
from lmjax.model.layers import Embed
from lmjax.model.quantized import boxed_codes
from lmjax.model.transformer import unstack_layers
from lmjax.streams import prng_key

# From this number of layers on, `abstract_params` traces one scanned layer: this is faster than tracing each of them.
_MANY = 5


class LanguageModel(nn.Module):
    """A language model of any family.

    Attributes:
        config: the architecture.
        heads: names in `lmjax.model.heads.HEADS`, of heads that the family can have. Empty: an encoder returns hidden
            states only; a decoder or encoder-decoder has vocabulary logits.
    """

    config: ModelConfig
    heads: tuple[str, ...] = ()

    def setup(self) -> None:
        """Makes the submodules; one that is never called has no parameters."""
        config, types = self.config, self.head_types
        self.embedding = Embed(config, config.vocab_size, "vocab")
        self.backbone = make_backbone(config, self.embedding)
        self.parts = {name: head.build(config, self.embedding, self.backbone) for name, head in types.items()}
        for part in self.parts.values():
            if not part.subtree:
                nn.share_scope(self, part)

    @property
    def head_types(self) -> dict[str, type[Head]]:
        """The classes of the heads by name; raises ValueError for a name that is unknown or not for this family."""
        return head_types(self.config.architecture, self.heads)

    @property
    def has_vocabulary(self) -> bool:
        """Whether this model has vocabulary logits."""
        return any(issubclass(head, VocabularyHead) for head in self.head_types.values())

    @nn.nowrap
    def empty_cache(self, batch: int, capacity: int, **settings: Any) -> Cache:
        """Returns an empty cache for rows of this model; the arguments are those of `lmjax.model.cache.init_cache`."""
        return init_cache(self.config, batch, capacity, **settings)

    def __call__(
        self, batch: Batch, *, deterministic: bool = True, dropout_rates: DropoutRates | None = None
    ) -> jax.Array:
        """Returns hidden states `[batch, length, embed]`, of the decoder in an encoder-decoder.

        Args:
            batch: the fields that `lmjax.model.families` lists for the family.
            deterministic: True: no dropout. False: needs an rng named "dropout" if any rate is not None.
            dropout_rates: traced rates; None: the config's.
        """
        if deterministic:
            return self.states(batch, DropoutRates())
        return self.states(batch, self.config.dropout.rates() if dropout_rates is None else dropout_rates)

    def states(self, batch: Batch, dropout_rates: DropoutRates) -> jax.Array:
        """Returns hidden states `[batch, length, embed]`, with dropout where a rate is not None."""
        return self.backbone(batch, dropout_rates)

    def extend(self, batch: Batch, cache: Cache) -> tuple[jax.Array, Cache]:
        """Returns hidden states `[batch, length, embed]` of tokens that follow those in a cache, and the new cache.

        There is no dropout. An encoder-decoder reads its encoder's fields only if the cache is empty.

        Args:
            batch: fields of a decoder (with the prefix `decoder_` in an encoder-decoder); `positions` are those of the
                tokens in their rows.
            cache: made by `empty_cache`, or returned by this method.
        """
        return self.backbone.extend(batch, cache)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[..., vocab]` for hidden states `[..., embed]` of any positions."""
        for part in self.parts.values():
            if isinstance(part, VocabularyHead):
                return part(hidden)
        raise ValueError(
            f"heads={self.heads}: this model has no vocabulary logits; an encoder has them with heads=('masked_lm',), a"
            " decoder with heads=()"
        )

    def part(self, name: str) -> Head:
        """Returns the head of this name; raises ValueError if this model does not have it."""
        if name not in self.parts:
            raise ValueError(f"heads={self.heads}: this model has no head {name!r}; add it to heads")
        return self.parts[name]

    def head(self, name: str, hidden: jax.Array, batch: Batch) -> jax.Array | tuple[jax.Array, ...]:
        """Returns the output of a head: an array, or a tuple in the order of its `outputs`.

        Args:
            name: of the head.
            hidden: `[batch, length, embed]`, as a call returns them.
            batch: the batch from which `hidden` was computed.
        """
        part = self.part(name)
        return part(hidden, *(batch.get(field) for field in part.reads))

    def outputs(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns all outputs of this model by name, without dropout; `init_params` calls it to make all parameters."""
        result = {"hidden": (hidden := self(batch))}
        for name, part in self.parts.items():
            result |= part.named(self.head(name, hidden, batch))
        return result


# Under jit, because the command's checks, shapes and first state then share one trace of the model; inlined, so that it
# leaves no function of its own in a program.
@functools.partial(jax.jit, static_argnames="model", inline=True)
def init_params(model: LanguageModel, rng: jax.Array) -> dict[str, Any]:
    """Returns new parameters of `model`, boxed with their axis names; can be called under jit and eval_shape."""
    tokens = jnp.zeros((1, min(2, model.config.max_length)), jnp.int32)
    batch = {f"{side.prefix}tokens": tokens for side in model.config.family.sides}
    # Without axis rules, because a batch of one row cannot be split over a mesh. The caller shards the parameters by
    # `out_shardings`.
    with nn.logical_axis_rules(()):
        return model.init(rng, batch, method=LanguageModel.outputs)["params"]


@functools.lru_cache(maxsize=8)
def abstract_params(config: ModelConfig, heads: tuple[str, ...]) -> dict[str, Any]:
    """Returns the shapes of the parameters, boxed with their axis names. Do not change the result: it is cached.

    Kernels that the config keeps in few bits are `Quantized`, whose arrays are boxed.
    """
    made = _abstract(config, heads)
    return boxed_codes(made, config.quantization) if config.quantization.stored else made


def _abstract(config: ModelConfig, heads: tuple[str, ...]) -> dict[str, Any]:
    """Returns what `abstract_params` does, with all kernels in floating point.

    Tracing all layers can take longer than reading a checkpoint. So, where all layers have the same shapes, one scanned
    layer is traced and then split into `num_layers`.
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
