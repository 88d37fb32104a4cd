"""Heads: what stands between an encoder's hidden states and a prediction."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.config import ModelConfig
from lmjax.model.layers import ACTIVATIONS, Dense, Norm


class MaskedLMTransform(nn.Module):
    """Dense, activation and norm before the vocabulary (Devlin et al. 2019, arXiv:1810.04805, section 3.1)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns `[..., embed]` for `[..., embed]`."""
        config = self.config
        x = Dense(config, (config.embed_dim,), ("embed", "mlp"), name="dense")(hidden)
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
        pooled = Dense(config, (config.embed_dim,), ("embed", "mlp"), name="pooler")(hidden[:, 0])
        classifier = Dense(config, (2,), ("mlp", "classes"), out_dtype="float32", name="classifier")
        return classifier(jnp.tanh(pooled))
