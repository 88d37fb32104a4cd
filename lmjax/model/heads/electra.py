"""The heads of replaced-token detection (ELECTRA: Clark et al. 2020, arXiv:2003.10555, section 3.1)."""

import flax.linen as nn
import jax

from lmjax.model.config import ModelConfig
from lmjax.model.dropout import DropoutRates
from lmjax.model.families import Batch, Encoder, InputEmbedding
from lmjax.model.heads.base import Head, Output, Size, class_logits, dense
from lmjax.model.heads.vocabulary import MaskedLMHead
from lmjax.model.layers import ACTIVATIONS, Embed


class ReplacedTokenHead(Head):
    """The logit that a token was replaced by the generator: Dense, the model's activation, and Dense to one logit.

    Clark et al. 2020, arXiv:2003.10555, section 3.1.
    """

    outputs = (Output("replaced_token", ("batch", "length")),)
    subtree = "replaced_token_head"

    @classmethod
    def flops(cls, config: ModelConfig, size: Size) -> int:
        """Returns the FLOPs of the two layers for each token."""
        return 2 * config.embed_dim * (config.embed_dim + 1) * size.rows * size.length

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[batch, length]` for `[batch, length, embed]`."""
        x = ACTIVATIONS[self.config.mlp](dense(self.config, "dense", hidden))
        return class_logits(self.config, 1, x, bool(self.config.biases))[..., 0]


class GeneratorHead(Head):
    """ELECTRA's generator (Clark et al. 2020, arXiv:2003.10555, section 3.1).

    A smaller masked language model that shares the token table and the input embeddings of the model. It reads the
    batch, and ignores the hidden states of the model.

    Attributes:
        table: the model's token table.
        inputs: the model's input embeddings.
    """

    table: Embed
    inputs: InputEmbedding

    outputs = (Output("generator_logits", ("batch", "length", "vocab")),)
    subtree = "generator"
    reads = ("tokens", "positions", "segment_ids", "type_ids")
    in_training_only = True

    @classmethod
    def build(cls, config: ModelConfig, table: Embed, backbone: nn.Module) -> "GeneratorHead":
        """Returns the generator of a model."""
        return cls(config, table, backbone.inputs, name=cls.subtree)

    @classmethod
    def submodel(cls, config: ModelConfig) -> ModelConfig:
        """Returns the generator's config."""
        return config.generator()

    @classmethod
    def flops(cls, config: ModelConfig, size: Size) -> int:
        """Returns the FLOPs of the generator's logits."""
        return MaskedLMHead.flops(cls.submodel(config), size)

    def setup(self) -> None:
        """Makes the submodules."""
        config = self.submodel(self.config)
        self.backbone = Encoder(config, self.table, self.inputs)
        self.vocabulary = MaskedLMHead.build(config, self.table, self.backbone)
        nn.share_scope(self, self.vocabulary)

    def __call__(self, hidden: jax.Array, *fields: jax.Array | None) -> jax.Array:
        """Returns float32 logits `[batch, length, vocab]`, without dropout; `fields` are those in `reads`."""
        del hidden
        batch = {name: x for name, x in zip(self.reads, fields, strict=True) if x is not None}
        return self.logits(self.states(batch, DropoutRates()))

    def states(self, batch: Batch, dropout_rates: DropoutRates) -> jax.Array:
        """Returns the generator's hidden states `[batch, length, generator width]`."""
        return self.backbone(batch, dropout_rates)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[..., vocab]` for hidden states of the generator at any positions."""
        return self.vocabulary(hidden)
