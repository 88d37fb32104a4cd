"""Heads with one output per row, computed from its first position, its mean or its last token."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.config import ModelConfig
from lmjax.model.heads.base import Head, Output, Size, Transform, class_logits, dense
from lmjax.model.layers import ACTIVATIONS, align


class PoolerHead(Head):
    """A vector for each row: Dense and tanh at the first position ([CLS]).

    Devlin et al. 2019, arXiv:1810.04805, section 3.1, task 2.
    """

    outputs = (Output("pooler", ("batch", "embed"), None),)
    subtree = "pooler_head"

    @classmethod
    def flops(cls, config: ModelConfig, size: Size) -> int:
        """Returns the FLOPs of one layer for each row."""
        return 2 * config.embed_dim**2 * size.rows

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns `[batch, embed]` for `[batch, length, embed]`."""
        return jnp.tanh(dense(self.config, "pooler", hidden[:, 0]))


class NextSentenceHead(Head):
    """Logits of whether B is the sentence after A: Dense and tanh at the first position ([CLS]), and two classes.

    Devlin et al. 2019, arXiv:1810.04805, section 3.1, task 2.
    """

    outputs = (Output("next_sentence", ("batch", 2)),)
    subtree = "next_sentence_head"

    @classmethod
    def flops(cls, config: ModelConfig, size: Size) -> int:
        """Returns the FLOPs of a layer and two classes for each row."""
        return 2 * config.embed_dim * (config.embed_dim + 2) * size.rows

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[batch, 2]` for `[batch, length, embed]`."""
        pooled = jnp.tanh(dense(self.config, "pooler", hidden[:, 0]))
        return class_logits(self.config, 2, pooled, bool(self.config.biases))


class EmbeddingHead(Head):
    """A vector for each text, from its hidden states (Reimers and Gurevych 2019, arXiv:1908.10084, section 3).

    It has no parameters. Several texts can share a row: each is a segment, which attends to no other.
    """

    outputs = (Output("embedding", ("batch", "embed")),)
    families = ("encoder", "decoder")
    subtree = "embedding_head"
    reads = ("segment_ids", "text_ids")
    has_parameters = False

    @classmethod
    def flops(cls, config: ModelConfig, size: Size) -> int:
        """Returns the FLOPs of the means over the tokens of one text in each row."""
        return 2 * config.embed_dim * size.rows * size.length

    def __call__(
        self, hidden: jax.Array, segment_ids: jax.Array | None = None, text_ids: jax.Array | None = None
    ) -> jax.Array:
        """Returns float32 vectors, `[batch, texts, embed]`, or `[batch, embed]` if a row is one text.

        Args:
            hidden: `[batch, length, embed]`.
            segment_ids: `[batch, length]`, 0 for padding; None: no padding.
            text_ids: `[batch, texts]`, the segment id of each text in a row; None: a row is one text.
        """
        vectors = text_vectors(hidden, segment_ids, text_ids, self.config.vector_pooling)
        if self.config.head.unit_length:
            # The root of 0 has no gradient.
            vectors *= jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True), 1e-24))
        return vectors


def text_vectors(
    hidden: jax.Array, segment_ids: jax.Array | None, text_ids: jax.Array | None, pooling: str
) -> jax.Array:
    """Returns float32 vectors, `[batch, texts, embed]`, or `[batch, embed]` if a row is one text.

    Args:
        hidden: `[batch, length, embed]`.
        segment_ids: `[batch, length]`, 0 for padding; None: no padding.
        text_ids: `[batch, texts]`, the segment id of each text in a row, 0 for none, whose vector is 0; None: a row is
            one text.
        pooling: "mean" over the tokens of a text, or its "first" or "last" token.
    """
    real = jnp.ones(hidden.shape[:2], bool) if segment_ids is None else segment_ids > 0
    mine = real[:, None] if text_ids is None else real[:, None] & (segment_ids[:, None] == text_ids[..., None])
    if pooling != "mean":
        # Of each text, the position of its first or last token only.
        places = jnp.arange(hidden.shape[1])[None, None]
        chosen, other = (jnp.max, -1) if pooling == "last" else (jnp.min, hidden.shape[1])
        mine &= places == chosen(jnp.where(mine, places, other), axis=-1, keepdims=True)
    shares = mine.astype(jnp.float32)
    shares /= jnp.maximum(jnp.sum(shares, axis=-1, keepdims=True), 1)
    vectors = jnp.einsum("btl,ble->bte", shares, hidden.astype(jnp.float32), precision="highest")
    return vectors[:, 0] if text_ids is None else vectors


class ClassifierHead(Head):
    """Class logits for each row (Devlin et al. 2019, section 4.1; in a decoder Radford et al. 2018, section 3.2).

    In an encoder it reads the first position or the mean, with a hidden layer between. In a decoder it reads the last
    token, without a hidden layer.
    """

    outputs = (Output("classifier", ("batch", "labels")),)
    families = ("encoder", "decoder")
    subtree = "classifier_head"
    reads = ("segment_ids",)
    fine_tuned = True

    @classmethod
    def adopts(cls, config: ModelConfig) -> Mapping[str, tuple[str, ...]]:
        """Returns BERT's pooler for the hidden layer, as in transformers; other activations have no such layer."""
        if config.family.causal or config.head.classifier != "tanh":
            return {}
        return {"dense": (f"{PoolerHead.subtree}/pooler", f"{NextSentenceHead.subtree}/pooler")}

    @classmethod
    def flops(cls, config: ModelConfig, size: Size) -> int:
        """Returns the FLOPs for each row, including the hidden layer in an encoder."""
        layer = 0 if config.family.causal else config.embed_dim
        return 2 * config.embed_dim * (config.head.labels + layer) * size.rows

    @nn.compact
    def __call__(self, hidden: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
        """Returns float32 logits `[batch, labels]`.

        Args:
            hidden: `[batch, length, embed]`.
            segment_ids: `[batch, length]`, 0 for padding, at the start or the end of a row; None: no padding.
        """
        config = self.config
        real = jnp.ones(hidden.shape[:2], bool) if segment_ids is None else segment_ids > 0
        if config.family.causal:
            positions = align(jnp.arange(hidden.shape[1]), real)
            last = jnp.max(jnp.where(real, positions, 0), axis=1)[:, None, None]
            return class_logits(config, config.head.labels, jnp.take_along_axis(hidden, last, axis=1)[:, 0], bias=False)
        x = hidden[:, 0]
        if config.head.pooling == "mean":
            total = jnp.sum(hidden.astype(jnp.float32), axis=1, where=real[..., None])
            count = jnp.maximum(jnp.sum(real, axis=1), 1).astype(jnp.float32)
            x = (total / count[:, None]).astype(hidden.dtype)
        return class_logits(config, config.head.labels, _hidden_layer(config, x), bias=True)


class ChoiceHead(Head):
    """A score for each of the texts that share a row, of which one is chosen (Devlin et al. 2019, section 4.4).

    In an encoder it reads the first token of a text or the mean, with a hidden layer between. In a decoder, and in the
    decoder of an encoder-decoder, it reads the last token of a text.
    """

    outputs = (Output("choice", ("batch",)),)
    families = ("encoder", "decoder", "encoder_decoder")
    subtree = "choice_head"
    reads = ("segment_ids", "decoder_segment_ids", "text_ids")
    fine_tuned = True

    @classmethod
    def adopts(cls, config: ModelConfig) -> Mapping[str, tuple[str, ...]]:
        """Returns BERT's pooler for the hidden layer, as `ClassifierHead` does."""
        return ClassifierHead.adopts(config)

    @classmethod
    def flops(cls, config: ModelConfig, size: Size) -> int:
        """Returns the FLOPs of one text in each row, including the hidden layer in an encoder."""
        layer = 0 if config.family.causal else config.embed_dim
        return 2 * config.embed_dim * (1 + layer) * size.rows

    @nn.compact
    def __call__(
        self,
        hidden: jax.Array,
        segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        text_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Returns float32 scores, `[batch, texts]`, or `[batch]` if a row is one text.

        Args:
            hidden: `[batch, length, embed]`.
            segment_ids: `[batch, length]`, 0 for padding; None: no padding, or an encoder-decoder.
            decoder_segment_ids: the same of the decoder of an encoder-decoder.
            text_ids: as for `text_vectors`.
        """
        config, own = self.config, segment_ids if decoder_segment_ids is None else decoder_segment_ids
        pooling = "last" if config.family.causal else config.head.pooling
        x = text_vectors(hidden, own, text_ids, pooling).astype(hidden.dtype)
        if not config.family.causal:
            x = _hidden_layer(config, x)
        return class_logits(config, 1, x, bias=not config.family.causal)[..., 0]


def _hidden_layer(config: ModelConfig, x: jax.Array) -> jax.Array:
    """Returns the layer before an encoder's class logits; called in a compact method of the layers' owner."""
    kind = config.head.classifier
    if kind == "transform":
        return Transform(config, config.embed_dim, name="transform")(x)
    return (jnp.tanh if kind == "tanh" else ACTIVATIONS[kind])(dense(config, "dense", x))
