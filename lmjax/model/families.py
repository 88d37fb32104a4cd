"""Encoder, Decoder and EncoderDecoder: input embeddings and a Stack, or two of each.

Each takes a batch, a dict of `[batch, length]` arrays, and returns hidden states `[batch, length, embed]`. Other fields
(targets, weights) are ignored. These fields may be absent:

* `positions`: 0, 1, 2 ...
* `segment_ids`: the row is one segment; 0 is padding.
* `type_ids`: all 0; read only if the config has token types.
* `prefix`: all 0; 1 where a decoder's token is visible to its whole segment.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import axes
from lmjax.model.cache import Cache
from lmjax.model.config import ModelConfig
from lmjax.model.dropout import DropoutRates, dropout
from lmjax.model.layers import Dense, Embed, Norm
from lmjax.model.relations import Sequence
from lmjax.model.transformer import Stack

Batch = Mapping[str, jax.Array]


class InputEmbedding(nn.Module):
    """The sum of the embeddings of tokens, positions and token types.

    Attributes:
        table: the token table, which belongs to another module and may be shared.
        decoder: whether this is the decoder's; an encoder-decoder may have another position scheme there.
    """

    config: ModelConfig
    table: Embed
    decoder: bool = False

    @nn.compact
    def __call__(self, batch: Batch, positions: jax.Array, rates: DropoutRates) -> jax.Array:
        """Returns `[batch, length, table width]`."""
        config, tokens = self.config, batch["tokens"]
        x = self.table(tokens)
        if config.embedding.scale:
            x *= config.base_table_dim**0.5
        if (added := config.scheme(self.decoder).embed(config, positions)) is not None:
            x += added.astype(x.dtype)
        if config.embedding.types:
            # A model with one type, such as RoBERTa, has no other for the second text of a pair.
            several = config.embedding.types > 1
            types = batch.get("type_ids", jnp.zeros_like(tokens)) if several else jnp.zeros_like(tokens)
            x += Embed(config, config.embedding.types, "types", name="types")(types)
        if config.embedding.norm:
            x = Norm(config, name="norm")(x)
        x = dropout(x, rates.residual, self.make_rng)
        return axes.constrain(x, ("act_batch", "act_length", "act_embed"))


class Side(nn.Module):
    """Input embeddings and a stack: the base class of encoder and decoder.

    Attributes:
        table: the token table.
        shared_inputs: the input embeddings of another model, to be shared; None: this module makes its own.
    """

    config: ModelConfig
    table: Embed
    shared_inputs: InputEmbedding | None = None

    causal: ClassVar[bool]

    def setup(self) -> None:
        """Makes the submodules."""
        config, shared = self.config, self.shared_inputs
        self.inputs = InputEmbedding(config, self.table, self.causal) if shared is None else shared
        if config.factorised:
            self.project_in = Dense(config, (config.embed_dim,), ("embedding", "embed"))
        self.stack = Stack(config, config.side_layers(self.causal), self.causal)

    def sequence(self, batch: Batch, rates: DropoutRates) -> Sequence:
        """Returns the input of the stack."""
        positions = _positions(batch)
        x = self.inputs(batch, positions, rates)
        prefix = batch["prefix"] > 0 if "prefix" in batch else None
        x = self.project_in(x) if self.config.factorised else x
        return Sequence(x, positions, batch.get("segment_ids"), prefix)


class Encoder(Side):
    """A token attends to all tokens of its segment (Devlin et al. 2019, arXiv:1810.04805, section 3)."""

    causal = False

    def __call__(self, batch: Batch, rates: DropoutRates) -> jax.Array:
        """Returns `[batch, length, embed]`; reads `tokens positions segment_ids type_ids`."""
        return self.stack(self.sequence(batch, rates), rates)[0]


class Decoder(Side):
    """A token attends to itself and to earlier tokens of its segment (Radford et al. 2019, section 2.3).

    Tokens with `prefix` are visible to their whole segment (Raffel et al. 2020, arXiv:1910.10683, section 3.2.1). Given
    the encoder's output, every layer has cross-attention.
    """

    causal = True

    def __call__(self, batch: Batch, rates: DropoutRates, memory: Sequence | None = None) -> jax.Array:
        """Returns `[batch, length, embed]`; reads `tokens positions segment_ids type_ids prefix`."""
        return self.stack(self.sequence(batch, rates), rates, memory)[0]

    def extend(self, batch: Batch, cache: Cache, memory: Sequence | None = None) -> tuple[jax.Array, Cache]:
        """Returns `[batch, length, embed]` for tokens that follow those in the cache, and the cache with them added.

        Args:
            batch: as for a call; `positions` and `segment_ids` are those of the new tokens in their rows.
            cache: the tokens read before.
            memory: the encoder's output, for the first call; None: the cache has its keys and values.
        """
        rates = DropoutRates()
        if cache.memory_positions is not None:
            if memory is None:
                memory = Sequence(None, cache.memory_positions, cache.memory_segments)
            else:
                shape = memory.x.shape[:2]
                segments = jnp.ones(shape, jnp.int32) if memory.segment_ids is None else memory.segment_ids
                positions = jnp.broadcast_to(memory.positions, shape)
                cache = cache.replace(memory_positions=positions, memory_segments=segments)
        return self.stack(self.sequence(batch, rates), rates, memory, cache)


class EncoderDecoder(nn.Module):
    """A decoder with cross-attention to an encoder's output (Raffel et al. 2020, arXiv:1910.10683, section 2.1).

    Encoder and decoder share the token table. Their fields have the prefixes `encoder_` and `decoder_`. A segment of
    the decoder attends to the encoder's segment of the same id.
    """

    config: ModelConfig
    table: Embed

    def setup(self) -> None:
        """Makes the encoder and the decoder."""
        self.encoder = Encoder(self.config, self.table)
        self.decoder = Decoder(self.config, self.table)

    def __call__(self, batch: Batch, rates: DropoutRates) -> jax.Array:
        """Returns the decoder's `[batch, length, embed]`."""
        return self.decode(batch, self.encode(batch, rates), rates)

    def encode(self, batch: Batch, rates: DropoutRates) -> jax.Array:
        """Returns the encoder's `[batch, encoder length, embed]`."""
        return self.encoder(_side(batch, "encoder_"), rates)

    def extend(self, batch: Batch, cache: Cache) -> tuple[jax.Array, Cache]:
        """Returns the decoder's `[batch, length, embed]`, and the cache with the tokens added.

        The encoder runs only if the cache is empty.
        """
        memory = None
        if cache.filled is None:
            encoder_batch = _side(batch, "encoder_")
            memory = Sequence(
                self.encode(batch, DropoutRates()), _positions(encoder_batch), encoder_batch.get("segment_ids")
            )
        return self.decoder.extend(_side(batch, "decoder_"), cache, memory)

    def decode(self, batch: Batch, memory: jax.Array, rates: DropoutRates) -> jax.Array:
        """Returns the decoder's `[batch, length, embed]`, given the encoder's output."""
        encoder_batch = _side(batch, "encoder_")
        sequence = Sequence(memory, _positions(encoder_batch), encoder_batch.get("segment_ids"))
        return self.decoder(_side(batch, "decoder_"), rates, sequence)


def make_backbone(config: ModelConfig, table: Embed) -> Encoder | Decoder | EncoderDecoder:
    """Returns the encoder, decoder or both that the config's family has, with the token table `table`."""
    if config.family.paired:
        return EncoderDecoder(config, table)
    return (Decoder if config.family.causal else Encoder)(config, table)


def _positions(batch: Batch) -> jax.Array:
    """Returns the batch's positions, or 0, 1, 2 ... as `[1, length]`."""
    return batch.get("positions", jnp.arange(batch["tokens"].shape[1])[None])


def _side(batch: Batch, prefix: str) -> Batch:
    """Returns the fields of the encoder or the decoder, without their prefix."""
    return {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}
