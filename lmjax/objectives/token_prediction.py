"""The device half of every objective that predicts tokens, `targets` with `weights`, at all positions of a row."""

import jax
import jax.numpy as jnp

from lmjax.objectives.base import Batch, LossSum, Objective, Outputs
from lmjax.objectives.losses import vocab_loss


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
