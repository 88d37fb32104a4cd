"""Heads: what stands between an encoder's hidden states and a prediction.

Their layers have biases where the model has any.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.config import ModelConfig
from lmjax.model.layers import ACTIVATIONS, Dense, Norm


class MaskedLMTransform(nn.Module):
    """Dense, activation and norm before the vocabulary (Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    Before a factorised table it is also the way back to the table's width (Lan et al. 2020, arXiv:1909.11942).
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns `[..., table width]` for `[..., embed]`, or `[..., embed]` where the output is not the table."""
        config = self.config
        width = config.table_dim if config.tie_embeddings else config.embed_dim
        x = Dense(config, (width,), ("embed", "mlp"), use_bias=bool(config.biases), name="dense")(hidden)
        return Norm(config, name="norm")(ACTIVATIONS[config.mlp](x))


class NextSentenceHead(nn.Module):
    """Is B the sentence after A? A tanh layer over the first position ([CLS]) and two classes.

    Devlin et al. 2019, arXiv:1810.04805, section 3.1, task 2.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[batch, 2]` for `[batch, length, embed]`."""
        config = self.config
        bias = bool(config.biases)
        pooled = Dense(config, (config.embed_dim,), ("embed", "mlp"), use_bias=bias, name="pooler")(hidden[:, 0])
        classifier = Dense(config, (2,), ("mlp", "classes"), use_bias=bias, out_dtype="float32", name="classifier")
        return classifier(jnp.tanh(pooled))


class ReplacedTokenHead(nn.Module):
    """Was this token put there by the generator? A layer, the model's activation and one logit.

    Clark et al. 2020, arXiv:2003.10555, section 3.1.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[batch, length]` for `[batch, length, embed]`."""
        config, bias = self.config, bool(self.config.biases)
        x = Dense(config, (config.embed_dim,), ("embed", "mlp"), use_bias=bias, name="dense")(hidden)
        classifier = Dense(config, (1,), ("mlp", "classes"), use_bias=bias, out_dtype="float32", name="classifier")
        return classifier(ACTIVATIONS[config.mlp](x))[..., 0]
