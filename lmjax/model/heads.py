"""Heads: what stands between hidden states and a prediction.

Their layers have biases where the model has any. What gives labels always has one on an encoder and none on a decoder,
whose classifier is one matrix, as in the checkpoints of both.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.config import ModelConfig
from lmjax.model.layers import ACTIVATIONS, Dense, Norm, align


class Transform(nn.Module):
    """Dense, activation and norm, as before BERT's vocabulary (Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    Before a factorised table it is also the way back to the table's width (Lan et al. 2020, arXiv:1909.11942).

    Attributes:
        width: of what it gives.
    """

    config: ModelConfig
    width: int

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns `[..., width]` for `[..., embed]`."""
        config = self.config
        x = Dense(config, (self.width,), ("embed", "mlp"), use_bias=bool(config.biases), name="dense")(hidden)
        return Norm(config, name="norm")(ACTIVATIONS[config.mlp](x))


class PoolerHead(nn.Module):
    """The whole row as a vector: a tanh layer over the first position ([CLS]).

    Devlin et al. 2019, arXiv:1810.04805, section 3.1, task 2.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns `[batch, embed]` for `[batch, length, embed]`."""
        return jnp.tanh(_dense(self.config, "pooler", hidden[:, 0]))


class NextSentenceHead(nn.Module):
    """Is B the sentence after A? A tanh layer over the first position ([CLS]) and two classes.

    Devlin et al. 2019, arXiv:1810.04805, section 3.1, task 2.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[batch, 2]` for `[batch, length, embed]`."""
        pooled = jnp.tanh(_dense(self.config, "pooler", hidden[:, 0]))
        return _classes(self.config, 2, pooled, bool(self.config.biases))


class ReplacedTokenHead(nn.Module):
    """Was this token put there by the generator? A layer, the model's activation and one logit.

    Clark et al. 2020, arXiv:2003.10555, section 3.1.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[batch, length]` for `[batch, length, embed]`."""
        x = ACTIVATIONS[self.config.mlp](_dense(self.config, "dense", hidden))
        return _classes(self.config, 1, x, bool(self.config.biases))[..., 0]


class ClassifierHead(nn.Module):
    """A label for every row (Devlin et al. 2019, section 4.1; on a decoder Radford et al. 2018, section 3.2).

    An encoder's reads the first position, or the mean, through a layer; a decoder's the last token as it is.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
        """Returns float32 logits `[batch, labels]`.

        Args:
            hidden: `[batch, length, embed]`.
            segment_ids: `[batch, length]`, 0 for padding, which ends a row or begins it; None: there is none.
        """
        config, kind = self.config, self.config.head.classifier
        real = jnp.ones(hidden.shape[:2], bool) if segment_ids is None else segment_ids > 0
        if config.family.causal:
            places = align(jnp.arange(hidden.shape[1]), real)
            last = jnp.max(jnp.where(real, places, 0), axis=1)[:, None, None]
            return _classes(config, config.head.labels, jnp.take_along_axis(hidden, last, axis=1)[:, 0], bias=False)
        x = hidden[:, 0]
        if config.head.pooling == "mean":
            total = jnp.sum(hidden.astype(jnp.float32), axis=1, where=real[..., None])
            count = jnp.maximum(jnp.sum(real, axis=1), 1).astype(jnp.float32)
            x = (total / count[:, None]).astype(hidden.dtype)
        if kind == "transform":
            x = Transform(config, config.embed_dim, name="transform")(x)
        else:
            x = (jnp.tanh if kind == "tanh" else ACTIVATIONS[kind])(_dense(config, "dense", x))
        return _classes(config, config.head.labels, x, bias=True)


class TokenHead(nn.Module):
    """Classes for every token: a tagger's labels, or whether an answer starts or ends here.

    Devlin et al. 2019, arXiv:1810.04805, sections 5.3 and 4.2.

    Attributes:
        classes: how many.
    """

    config: ModelConfig
    classes: int

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[batch, length, classes]` for `[batch, length, embed]`."""
        config = self.config
        if config.head.classifier == "transform":
            hidden = Transform(config, config.embed_dim, name="transform")(hidden)
        return _classes(config, self.classes, hidden, bias=True)


def _dense(config: ModelConfig, name: str, x: jax.Array) -> jax.Array:
    """Returns a layer of the model's width over `x`; called by the compact module that owns it."""
    return Dense(config, (config.embed_dim,), ("embed", "mlp"), use_bias=bool(config.biases), name=name)(x)


def _classes(config: ModelConfig, classes: int, x: jax.Array, bias: bool) -> jax.Array:
    """Returns float32 logits; called by the compact module that owns the layer."""
    return Dense(config, (classes,), ("mlp", "classes"), use_bias=bias, out_dtype="float32", name="classifier")(x)
