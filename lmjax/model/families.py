"""Encoder, Decoder and EncoderDecoder: input embeddings and a Stack, or two of them.

Each takes a batch, a dict of `[batch, length]` arrays, and returns hidden states `[batch, length, embed]`. Fields that
it does not know (targets, weights) are ignored. `positions` may be left out (0, 1, 2 ...), and so may `segment_ids`
(the row is one segment; 0 is padding), `type_ids` (all 0; read only where the config has token types) and `prefix`
(all 0; 1 where a decoder's token is seen by the whole of its segment).
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import axes
from lmjax.model.cache import Cache
from lmjax.model.config import ModelConfig
from lmjax.model.groups import DropoutRates
from lmjax.model.layers import Dense, Embed, Norm, dropout
from lmjax.model.transformer import Sequence, Stack

Batch = Mapping[str, jax.Array]


class InputEmbedding(nn.Module):
    """Tokens, positions and token types as vectors; the token table is its owner's, who may share it.

    Attributes:
        table: of the tokens.
        decoder: whether this is the decoder of an encoder-decoder, whose positions may be of another kind.
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
            x *= config.table_dim**0.5
        if (added := config.scheme(self.decoder).embed(config, positions)) is not None:
            x += added.astype(x.dtype)
        if config.embedding.types:
            types = batch.get("type_ids", jnp.zeros_like(tokens))
            x += Embed(config, config.embedding.types, "types", name="types")(types)
        if config.embedding.norm:
            x = Norm(config, name="norm")(x)
        x = dropout(x, rates.residual, self.make_rng)
        return axes.constrain(x, ("act_batch", "act_length", "act_embed"))


class Side(nn.Module):
    """Input embeddings and a stack: what an encoder and a decoder have in common.

    Attributes:
        table: of the tokens.
        shared_inputs: another model's embeddings of the inputs, to be used here too; None: its own.
    """

    config: ModelConfig
    table: Embed
    shared_inputs: InputEmbedding | None = None

    causal: ClassVar[bool]

    def setup(self) -> None:
        """Makes the parts."""
        config, shared = self.config, self.shared_inputs
        self.inputs = InputEmbedding(config, self.table, self.causal) if shared is None else shared
        if config.factorised:
            self.project_in = Dense(config, (config.embed_dim,), ("embedding", "embed"))
        self.stack = Stack(config, config.side_layers(self.causal), self.causal)

    def sequence(self, batch: Batch, rates: DropoutRates) -> Sequence:
        """Returns what enters the stack."""
        positions = _positions(batch)
        x = self.inputs(batch, positions, rates)
        prefix = batch["prefix"] > 0 if "prefix" in batch else None
        x = self.project_in(x) if self.config.factorised else x
        return Sequence(x, positions, batch.get("segment_ids"), prefix)


class Encoder(Side):
    """Every token sees every token of its segment (Devlin et al. 2019, arXiv:1810.04805, section 3)."""

    causal = False

    def __call__(self, batch: Batch, rates: DropoutRates) -> jax.Array:
        """Returns `[batch, length, embed]`; reads `tokens positions segment_ids type_ids`."""
        return self.stack(self.sequence(batch, rates), rates)[0]


class Decoder(Side):
    """Every token sees its segment up to itself (Radford et al. 2019, section 2.3), and a memory where there is one.

    Tokens under `prefix` are seen by all of their segment (Raffel et al. 2020, arXiv:1910.10683, section 3.2.1).
    """

    causal = True

    def __call__(self, batch: Batch, rates: DropoutRates, memory: Sequence | None = None) -> jax.Array:
        """Returns `[batch, length, embed]`; reads `tokens positions segment_ids type_ids prefix`."""
        return self.stack(self.sequence(batch, rates), rates, memory)[0]

    def extend(self, batch: Batch, cache: Cache, memory: Sequence | None = None) -> tuple[jax.Array, Cache]:
        """Returns `[batch, length, embed]` of tokens that go on from what the cache holds, and the cache with them.

        Args:
            batch: as for a call; `positions` say how far each row is, and `segment_ids` what it goes on with.
            cache: of what was read before.
            memory: the encoder's output, where nothing has been read yet.
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
    """A decoder that also sees the encoder's output (Raffel et al. 2020, arXiv:1910.10683, section 2.1).

    Both sides share the token table. Their fields carry the prefixes `encoder_` and `decoder_`; a segment of the
    decoder sees the encoder's segment of the same id.
    """

    config: ModelConfig
    table: Embed

    def setup(self) -> None:
        """Makes the two sides."""
        self.encoder = Encoder(self.config, self.table)
        self.decoder = Decoder(self.config, self.table)

    def __call__(self, batch: Batch, rates: DropoutRates) -> jax.Array:
        """Returns the decoder's `[batch, length, embed]`."""
        return self.decode(batch, self.encode(batch, rates), rates)

    def encode(self, batch: Batch, rates: DropoutRates) -> jax.Array:
        """Returns the encoder's `[batch, encoder length, embed]`."""
        return self.encoder(_side(batch, "encoder_"), rates)

    def extend(self, batch: Batch, cache: Cache) -> tuple[jax.Array, Cache]:
        """Returns the decoder's `[batch, length, embed]`, and the cache; an empty cache reads the encoder's fields."""
        memory = None
        if cache.filled is None:
            asked = _side(batch, "encoder_")
            memory = Sequence(self.encode(batch, DropoutRates()), _positions(asked), asked.get("segment_ids"))
        return self.decoder.extend(_side(batch, "decoder_"), cache, memory)

    def decode(self, batch: Batch, memory: jax.Array, rates: DropoutRates) -> jax.Array:
        """Returns the decoder's `[batch, length, embed]`, given the encoder's output."""
        asked = _side(batch, "encoder_")
        sequence = Sequence(memory, _positions(asked), asked.get("segment_ids"))
        return self.decoder(_side(batch, "decoder_"), rates, sequence)


def make_backbone(config: ModelConfig, table: Embed) -> Encoder | Decoder | EncoderDecoder:
    """Returns the stacks of a config's family on a token table."""
    if config.family.paired:
        return EncoderDecoder(config, table)
    return (Decoder if config.family.causal else Encoder)(config, table)


def _positions(batch: Batch) -> jax.Array:
    """Returns the batch's positions, or 0, 1, 2 ... as `[1, length]`."""
    return batch.get("positions", jnp.arange(batch["tokens"].shape[1])[None])


def _side(batch: Batch, prefix: str) -> Batch:
    """Returns the fields of one side, without their prefix."""
    return {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}
