"""Heads with logits over the vocabulary, and the head of a model without outputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import axes
from lmjax.model.config import ModelConfig
from lmjax.model.heads.base import Head, Output, Size, Transform
from lmjax.model.layers import Dense, Embed, align
from lmjax.model.parameters import parameter

# The logit of a row without a token: its probability is exactly 0, and finite numbers make no NaN of products with 0.
_NEVER = -1e30


class VocabularyHead(Head):
    """Logits of the next token; the default head of a decoder and of an encoder-decoder.

    Attributes:
        table: the model's token table.
    """

    table: Embed

    outputs = (Output("logits", ("batch", "length", "vocab")),)
    families = ("decoder", "encoder_decoder")
    subtree = ""

    @classmethod
    def build(cls, config: ModelConfig, table: Embed, backbone: nn.Module) -> "VocabularyHead":
        """Returns the head of a model with this token table."""
        del backbone
        return cls(config, table, name="vocabulary")

    @classmethod
    def flops(cls, config: ModelConfig, size: Size) -> int:
        """Returns the FLOPs of the logits and of the layer before them."""
        width = config.table_dim if config.head.tied else config.embed_dim
        before = config.embed_dim * width if config.head.transform or width != config.embed_dim else 0
        return 2 * (before + width * config.vocab_size) * size.predictions

    def setup(self) -> None:
        """Makes the layers between hidden states and logits."""
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

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[..., vocab]` for hidden states `[..., embed]` at any positions."""
        config, x = self.config, hidden
        if config.head.transform:
            x = self.transform(x)
        elif config.head.tied and config.factorised:
            x = self.project_out(x)
        logits = self.table.attend(x) if config.head.tied else self.output(x)
        if config.logit_scale != 1:
            logits *= config.logit_scale
        if config.head.bias:
            logits += align(self.output_bias.astype(jnp.float32), logits)
        if config.head.softcap is not None:
            logits = config.head.softcap * jnp.tanh(logits / config.head.softcap)
        if config.embedding.padding:
            ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
            logits = jnp.where(ids < config.vocab_size - config.embedding.padding, logits, _NEVER)
        return axes.constrain(logits, (*("act_batch", "act_length")[: logits.ndim - 1], "act_vocab"))


class MaskedLMHead(VocabularyHead):
    """An encoder's logits of masked tokens (Devlin et al. 2019, arXiv:1810.04805, section 3.1, task 1)."""

    families = ("encoder",)


class BareHead(Head):
    """A head without outputs, for a decoder that was published without output layer, such as an embedding model."""

    outputs = ()
    families = ("decoder", "encoder_decoder")
    subtree = "bare"

    @classmethod
    def flops(cls, config: ModelConfig, size: Size) -> int:
        """Returns 0."""
        del config, size
        return 0

    def __call__(self, hidden: jax.Array) -> tuple[()]:
        """Returns the empty tuple."""
        del hidden
        return ()
