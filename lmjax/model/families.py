"""Encoder, Decoder and EncoderDecoder: input embeddings and a Stack, or two of them.

Each takes a batch, a dict of `[batch, length]` arrays, and returns hidden states `[batch, length, embed]`. Fields that
it does not know (targets, weights) are ignored. `positions` may be left out (0, 1, 2 ...), and so may `segment_ids`
(the row is one segment; 0 is padding) and `type_ids` (all 0; read only where the config has token types).
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.errors import FlagError
from lmjax.model.config import DropoutRates, ModelConfig
from lmjax.model.layers import Embed, Norm, dropout
from lmjax.model.positions import sinusoidal
from lmjax.model.transformer import Stack
from lmjax.parallel import axes

Batch = Mapping[str, jax.Array]


class InputEmbedding(nn.Module):
    """Tokens, positions and token types as vectors; the token table is its owner's, who may share it."""

    config: ModelConfig
    table: Embed

    @nn.compact
    def __call__(self, batch: Batch, positions: jax.Array, rates: DropoutRates) -> jax.Array:
        """Returns `[batch, length, embed]`."""
        config, tokens = self.config, batch["tokens"]
        if config.positions == "learned" and tokens.shape[1] > config.max_length:
            raise FlagError(
                f"rows of {tokens.shape[1]} tokens, and max_length={config.max_length} rows in the learned position"
                " table; raise max_length or shorten the rows"
            )
        x = self.table(tokens)
        if config.embed_scale:
            x *= config.embed_dim**0.5
        if config.positions == "learned":
            x += Embed(config, config.max_length, "positions", name="positions")(positions)
        elif config.positions == "sinusoidal":
            x += sinusoidal(positions, config.embed_dim).astype(x.dtype)
        if config.num_types:
            types = batch.get("type_ids", jnp.zeros_like(tokens))
            x += Embed(config, config.num_types, "types", name="types")(types)
        if config.embed_norm:
            x = Norm(config, name="norm")(x)
        x = dropout(x, rates.residual, self.make_rng)
        return axes.constrain(x, ("act_batch", "act_length", "act_embed"))


class Encoder(nn.Module):
    """Every token sees every token of its segment (Devlin et al. 2019, arXiv:1810.04805, section 3)."""

    config: ModelConfig
    table: Embed

    @nn.compact
    def __call__(self, batch: Batch, rates: DropoutRates) -> jax.Array:
        """Returns `[batch, length, embed]`; reads `tokens positions segment_ids type_ids`."""
        positions = _positions(batch)
        x = InputEmbedding(self.config, self.table, name="inputs")(batch, positions, rates)
        stack = Stack(self.config, self.config.num_layers, causal=False, name="stack")
        return stack(x, positions, batch.get("segment_ids"), rates)


class Decoder(nn.Module):
    """Every token sees its segment up to itself (Radford et al. 2019, section 2.3), and a memory where there is one."""

    config: ModelConfig
    table: Embed

    @nn.compact
    def __call__(
        self,
        batch: Batch,
        rates: DropoutRates,
        memory: jax.Array | None = None,
        memory_segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Returns `[batch, length, embed]`; reads `tokens positions segment_ids type_ids`."""
        positions = _positions(batch)
        x = InputEmbedding(self.config, self.table, name="inputs")(batch, positions, rates)
        stack = Stack(self.config, self.config.decoder_layers, causal=True, name="stack")
        return stack(x, positions, batch.get("segment_ids"), rates, memory, memory_segment_ids)


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

    def decode(self, batch: Batch, memory: jax.Array, rates: DropoutRates) -> jax.Array:
        """Returns the decoder's `[batch, length, embed]`, given the encoder's output."""
        return self.decoder(_side(batch, "decoder_"), rates, memory, batch.get("encoder_segment_ids"))


FAMILIES = {"encoder": Encoder, "decoder": Decoder, "encoder_decoder": EncoderDecoder}


def _positions(batch: Batch) -> jax.Array:
    """Returns the batch's positions, or 0, 1, 2 ... as `[1, length]`."""
    return batch.get("positions", jnp.arange(batch["tokens"].shape[1])[None])


def _side(batch: Batch, prefix: str) -> Batch:
    """Returns the fields of one side, without their prefix."""
    return {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}
