"""Replaced-token detection (ELECTRA: Clark et al. 2020, arXiv:2003.10555, section 3.1).

A small generator is trained on masked language modelling and fills in the masks. The main model, the discriminator,
predicts for each token whether it is the original. One step trains both; no gradient passes through the filled-in
tokens.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from lmjax.objectives.base import Batch, Features, Forward
from lmjax.objectives.losses import binary_loss, split_chunks, vocab_loss
from lmjax.objectives.masked_lm import MaskedLM, MaskedLMConfig
from lmjax.objectives.sums import LossSum


class ReplacedTokenConfig(MaskedLMConfig):
    """Settings of replaced-token detection; the mask settings are those of the generator's masked LM."""

    weighting: ClassVar[tuple[str, ...]] = ("loss_weight", "discriminator_weight")

    replace_by_mask: float = Field(1.0, ge=0, le=1, description="share of the masked tokens that become [MASK]")
    replace_by_random: float = Field(0.0, ge=0, le=1, description="share that become a random token; the rest stay")
    discriminator_weight: float = Field(50.0, gt=0, description="weight of the discriminator beside the generator")

    def loss_weights(self, name: str) -> dict[str, float]:
        """Returns the weights in the loss of the discriminator's sum and of the generator's."""
        return {name: self.loss_weight * self.discriminator_weight, f"{name}_generator": self.loss_weight}


@dataclasses.dataclass(frozen=True)
class ReplacedToken(MaskedLM):
    """Detects the tokens that a generator replaced. It has two loss sums: the discriminator's and the generator's."""

    config: ReplacedTokenConfig
    name: ClassVar[str] = "rtd"
    usual_for: ClassVar[tuple[str, ...]] = ()
    heads: ClassVar[tuple[str, ...]] = ("replaced_token", "generator")
    shares_logits: ClassVar[bool] = False

    @property
    def generator(self) -> str:
        """Returns the name of the generator's loss sum."""
        return f"{self.name}_generator"

    def transform(self, features: Features, rng: np.random.Generator) -> Features:
        """Returns the features of the masked LM, and `replaced_token_weights` `[length]`: 1 at tokens, 0 at padding."""
        present = (features["segment_ids"] > 0).astype(np.float32)
        return {**super().transform(features, rng), "replaced_token_weights": present}

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of tokens and the number of masked tokens."""
        return {self.name: jnp.sum(batch["replaced_token_weights"]), self.generator: jnp.sum(batch["weights"])}

    @classmethod
    def diverges(cls) -> bool:
        """Returns False: two passes of the generator put different tokens into the discriminator's rows."""
        return False

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the discriminator's sums over all tokens and the generator's over the masked ones."""
        generator = forward.submodel("generator")
        hidden = self.predicting(generator.hidden, batch)
        targets, weights = batch["targets"], batch["weights"]
        masked_lm = vocab_loss(
            hidden,
            generator.logits,
            targets,
            weights,
            chunk=self.vocab_chunk,
            penalties=forward.penalties,
            num_ids=self.tokenizer.vocab_size,
        )
        guesses = self._sample(generator, hidden)
        filled, original = (_put(batch, values) for values in (guesses, targets))
        states = forward.states({**batch, "tokens": filled})
        # A token that the generator predicted correctly counts as original.
        logits = forward.head("replaced_token", states)
        discriminator = binary_loss(logits, filled != original, batch["replaced_token_weights"])
        return {self.name: discriminator, self.generator: masked_lm}

    def _sample(self, generator: Forward, hidden: jax.Array) -> jax.Array:
        """Returns `[batch, predictions]`: tokens sampled from the generator, without a gradient."""
        hidden = jax.lax.stop_gradient(hidden)
        chunk = min(self.vocab_chunk, hidden.shape[1]) or hidden.shape[1]
        parts = split_chunks(hidden, chunk)

        def draw(part: tuple[jax.Array, jax.Array]) -> jax.Array:
            logits, key = jax.lax.stop_gradient(generator.logits(part[0])), part[1]
            # Padding of the vocabulary is never sampled: no text has these ids, so they would be detected at once.
            ids = jnp.arange(logits.shape[-1]) < self.tokenizer.vocab_size
            return jax.random.categorical(key, jnp.where(ids, logits, -jnp.inf), axis=-1)

        if len(parts) == 1:
            return draw((hidden, generator.key))
        drawn = jax.lax.map(draw, (parts, jax.random.split(generator.key, len(parts))))
        return jnp.swapaxes(drawn, 0, 1).reshape(hidden.shape[0], -1)[:, : hidden.shape[1]]

    def token_targets(self, batch: Batch | Features) -> dict[str, tuple[Any, Any]]:
        """Returns the generator's targets and their weights."""
        return {self.generator: (batch["targets"], batch["weights"])}


def _put(batch: Batch, values: jax.Array) -> jax.Array:
    """Returns the batch's tokens with `values` `[batch, predictions]` at the masked positions."""
    places, tokens = batch["prediction_positions"], batch["tokens"]
    # Predictions without weight have position 0, and the token there must not change.
    values = jnp.where(batch["weights"] > 0, values, jnp.take_along_axis(tokens, places, axis=1))
    return jnp.put_along_axis(tokens, places, values.astype(tokens.dtype), axis=1, inplace=False)
