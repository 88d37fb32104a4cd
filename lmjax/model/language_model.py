"""LanguageModel: a family, its token table, and the outputs that were asked for."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import axes
from lmjax.model.cache import Cache
from lmjax.model.config import ModelConfig
from lmjax.model.families import Batch, InputEmbedding, make_backbone
from lmjax.model.groups import DropoutRates
from lmjax.model.heads import ClassifierHead, NextSentenceHead, PoolerHead, ReplacedTokenHead, TokenHead, Transform
from lmjax.model.layers import Dense, Embed, align
from lmjax.model.parameters import parameter

HEADS = ("masked_lm", "next_sentence", "replaced_token", "generator", "pooler", "classifier", "tagger", "span")
# No vocabulary logits and nothing in their place: decoders published without an output layer, as for embeddings.
BARE = "bare"


class LanguageModel(nn.Module):
    """A language model of any family.

    Encoder-decoders and decoders have vocabulary logits unless they have a classifier in their place, or are bare; an
    encoder has the outputs that `heads` lists.

    Attributes:
        config: the architecture.
        heads: of an encoder, any of HEADS; of a decoder, none, "classifier" or "bare", which is for hidden states
            alone; of an encoder-decoder, none or "bare". "generator" is ELECTRA's, a smaller
            masked language model that shares the embeddings of the inputs; "span" gives an answer's start and end.
        shared: the token table and the embeddings of the inputs of another model, to be used here too; None: its own.
    """

    config: ModelConfig
    heads: tuple[str, ...] = ()
    shared: tuple[Embed, InputEmbedding] | None = None

    def setup(self) -> None:
        """Makes the parts; a part that is never called has no parameters."""
        config = self.config
        if unknown := set(self.heads) - {*HEADS, BARE}:
            raise ValueError(f"unknown heads {sorted(unknown)}; there are: {', '.join((*HEADS, BARE))}")
        allowed = HEADS if not config.family.causal else (BARE,) if config.family.paired else ("classifier", BARE)
        if not set(self.heads) <= set(allowed):
            raise ValueError(
                f"heads={self.heads} stand on an encoder, a classifier alone on a decoder too; and"
                f" architecture={config.architecture}"
            )
        if self.shared is None:
            self.embedding, inputs = Embed(config, config.vocab_size, "vocab"), None
        else:
            self.embedding, inputs = self.shared
        self.backbone = make_backbone(config, self.embedding, inputs)
        if "next_sentence" in self.heads:
            self.next_sentence_head = NextSentenceHead(config)
        if "replaced_token" in self.heads:
            self.replaced_token_head = ReplacedTokenHead(config)
        if "generator" in self.heads:
            shared = self.embedding, self.backbone.inputs
            self.generator = LanguageModel(config.generator(), ("masked_lm",), shared)
        if "pooler" in self.heads:
            self.pooler_head = PoolerHead(config)
        if "classifier" in self.heads:
            self.classifier_head = ClassifierHead(config)
        if "tagger" in self.heads:
            self.tagger_head = TokenHead(config, config.head.labels)
        if "span" in self.heads:
            self.span_head = TokenHead(config, 2)
        if self.has_vocabulary:
            self._make_vocabulary()

    def _make_vocabulary(self) -> None:
        """Makes what stands between hidden states and vocabulary logits."""
        config = self.config
        if config.head.transform:
            self.transform = Transform(config, config.table_dim if config.head.tied else config.embed_dim)
        elif config.head.tied and config.factorised:
            self.project_out = Dense(config, (config.table_dim,), ("embed", "embedding"))
        if not config.head.tied:
            self.output = Dense(config, (config.vocab_size,), ("embed", "vocab"), use_bias=False, out_dtype="float32")
        if config.head.bias:
            zeros, shape = nn.initializers.zeros, (config.vocab_size,)
            self.output_bias = parameter(self, "output_bias", zeros, ("vocab",), shape, config.param_dtype)

    @property
    def has_vocabulary(self) -> bool:
        """Whether this model has vocabulary logits."""
        needed = self.config.family.vocabulary_heads
        return set(needed) <= set(self.heads) if needed else not self.heads

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
            rates = DropoutRates()
        else:
            rates = self.config.dropout.rates() if dropout_rates is None else dropout_rates
        return self.backbone(batch, rates)

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
        config = self.config
        if not self.has_vocabulary:
            raise ValueError(
                f"heads={self.heads}: an encoder has vocabulary logits with heads=('masked_lm',), a decoder with none"
            )
        x = hidden
        if config.head.transform:
            x = self.transform(x)
        elif config.head.tied and config.factorised:
            x = self.project_out(x)
        logits = self.embedding.attend(x) if config.head.tied else self.output(x)
        if config.head.scale:
            logits *= config.table_dim**-0.5
        if config.head.bias:
            logits += align(self.output_bias.astype(jnp.float32), logits)
        if config.head.softcap is not None:
            logits = config.head.softcap * jnp.tanh(logits / config.head.softcap)
        return axes.constrain(logits, (*("act_batch", "act_length")[: logits.ndim - 1], "act_vocab"))

    def next_sentence(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[batch, 2]` from the first position of `[batch, length, embed]`."""
        return self.next_sentence_head(hidden)

    def replaced_token(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[batch, length]` of having been replaced, for `[batch, length, embed]`."""
        return self.replaced_token_head(hidden)

    def pooler(self, hidden: jax.Array) -> jax.Array:
        """Returns `[batch, embed]`, BERT's vector of a row, from the first position of `[batch, length, embed]`."""
        return self.pooler_head(hidden)

    def classifier(self, hidden: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
        """Returns float32 logits `[batch, labels]` of the rows of `[batch, length, embed]`.

        Args:
            hidden: of an encoder, whose first position or mean is read, or a decoder, whose last token is.
            segment_ids: `[batch, length]`, 0 for padding; None: there is none.
        """
        return self.classifier_head(hidden, segment_ids)

    def tagger(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[batch, length, labels]` for `[batch, length, embed]`."""
        return self.tagger_head(hidden)

    def span(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns float32 logits `[batch, length]` of an answer's first token, and of its last."""
        start, end = jnp.moveaxis(self.span_head(hidden), -1, 0)
        return start, end

    def generator_states(
        self, batch: Batch, *, deterministic: bool = True, dropout_rates: DropoutRates | None = None
    ) -> jax.Array:
        """Returns the generator's hidden states `[batch, length, generator width]`; arguments as of a call."""
        return self.generator(batch, deterministic=deterministic, dropout_rates=dropout_rates)

    def generator_logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[..., vocab]` for the generator's hidden states, of all positions or a choice."""
        return self.generator.logits(hidden)

    def outputs(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns every output of this model by name, without dropout: what initialisation calls."""
        hidden = self(batch)
        result = {"hidden": hidden}
        if self.has_vocabulary:
            result["logits"] = self.logits(hidden)
        for name in ("next_sentence", "replaced_token", "pooler", "tagger"):
            if name in self.heads:
                result[name] = getattr(self, name)(hidden)
        if "generator" in self.heads:
            result["generator_logits"] = self.generator_logits(self.generator_states(batch))
        if "classifier" in self.heads:
            result["classifier"] = self.classifier(hidden, batch.get("segment_ids"))
        if "span" in self.heads:
            result["start"], result["end"] = self.span(hidden)
        return result


def init_params(model: LanguageModel, rng: jax.Array) -> dict[str, Any]:
    """Returns the parameters of `model`, boxed with their axis names; pure, so jit and eval_shape take it."""
    tokens = jnp.zeros((1, min(2, model.config.max_length)), jnp.int32)
    batch = {f"{side.prefix}tokens": tokens for side in model.config.family.sides}
    # No rules: a batch of one row cannot be split over a mesh. Where the parameters go is the caller's `out_shardings`.
    with nn.logical_axis_rules(()):
        return model.init(rng, batch, method=LanguageModel.outputs)["params"]
