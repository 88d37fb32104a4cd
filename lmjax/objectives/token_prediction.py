"""The device half of every objective that predicts tokens, `targets` with `weights`, at all positions of a row."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.objectives.base import Batch, Features, LossSum, Objective, Outputs
from lmjax.objectives.losses import vocab_loss
from lmjax.objectives.rows import source_target


class TokenPrediction(Objective):
    """An objective whose loss is the cross entropy of `targets`."""

    def weight(self, batch: Batch) -> jax.Array:
        """Returns the number of targets."""
        return jnp.sum(batch["weights"])

    def loss(self, outputs: Outputs, batch: Batch) -> LossSum:
        """Returns the sums over the targets."""
        hidden = self.predicting(outputs.hidden, batch)
        return vocab_loss(hidden, outputs.logits, batch["targets"], batch["weights"], chunk=self.vocab_chunk)

    def predicting(self, hidden: jax.Array, batch: Batch) -> jax.Array:
        """Returns `[batch, targets, embed]`: the states that predict, out of `[batch, length, embed]`; here all."""
        del batch
        return hidden


class SourceToTarget(TokenPrediction):
    """An objective that predicts a target from a source: two rows of an encoder-decoder, or one of a decoder."""

    architectures: ClassVar[tuple[str, ...]] = ("encoder_decoder", "decoder")

    def places(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Returns the places that sources and targets of these lengths take in a row of `length`.

        An encoder-decoder has two rows to fill; the fuller one counts, in places of the encoder's.
        """
        if self.architecture == "decoder":
            return source + target
        return np.maximum(source, np.ceil(target * self.length / self.target_length).astype(np.int64))

    def row(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Features:
        """Returns the features of pairs that share a row; see `rows.source_target`."""
        return source_target(
            pairs,
            architecture=self.architecture,
            length=self.length,
            target_length=self.target_length,
            pad_id=self.tokenizer.pad_id,
            bos_id=self.tokenizer.bos_id,
        )
