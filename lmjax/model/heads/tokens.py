"""Heads that classify each token: labels of tokens, and start and end of an answer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.config import ModelConfig
from lmjax.model.heads.base import Head, Output, Size, Transform, class_logits


class TaggerHead(Head):
    """Class logits for each token (Devlin et al. 2019, arXiv:1810.04805, section 5.3)."""

    outputs = (Output("tagger", ("batch", "length", "labels")),)
    subtree = "tagger_head"
    fine_tuned = True

    @classmethod
    def flops(cls, config: ModelConfig, size: Size) -> int:
        """Returns the FLOPs for all tokens."""
        return _flops(config, config.head.labels, size)

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[batch, length, labels]` for `[batch, length, embed]`."""
        return _logits(self.config, self.config.head.labels, hidden)


class SpanHead(Head):
    """Logits of an answer's start and end at each token (Devlin et al. 2019, arXiv:1810.04805, section 4.2)."""

    outputs = (Output("start", ("batch", "length")), Output("end", ("batch", "length")))
    subtree = "span_head"
    fine_tuned = True

    @classmethod
    def flops(cls, config: ModelConfig, size: Size) -> int:
        """Returns the FLOPs for all tokens."""
        return _flops(config, 2, size)

    @nn.compact
    def __call__(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns float32 logits `[batch, length]` of an answer's first token, and of its last token."""
        start, end = jnp.moveaxis(_logits(self.config, 2, hidden), -1, 0)
        return start, end


def _logits(config: ModelConfig, classes: int, hidden: jax.Array) -> jax.Array:
    """Returns float32 `[batch, length, classes]`; called in a compact method of the layers' owner."""
    if config.head.classifier == "transform":
        hidden = Transform(config, config.embed_dim, name="transform")(hidden)
    return class_logits(config, classes, hidden, bias=True)


def _flops(config: ModelConfig, classes: int, size: Size) -> int:
    """Returns the FLOPs of `_logits`."""
    before = config.embed_dim if config.head.classifier == "transform" else 0
    return 2 * config.embed_dim * (before + classes) * size.rows * size.length
