"""Masked diffusion: masked language modelling at every mask rate, whose loss is a bound on the likelihood of the text.

LLaDA (Nie et al. 2025, arXiv:2502.09992, section 2) and MDLM (Sahoo et al. 2024, arXiv:2406.07524, section 3). A row
with L text tokens has l of them masked, l drawn uniformly from 1 to L, and the cross entropy of each masked token has
the weight L / l, the inverse of the row's mask rate. The papers draw a mask rate, and mask each token with this
probability; the exact number, as in LLaDA's likelihood evaluation (section 2.4), gives the same expectation with less
variance, and the weights of every row add up to L.

The expectation of a row's loss is the mean, over all orders of its L tokens, of the loss of predicting one token after
the other in this order (order-agnostic autoregression: Uria et al. 2014, arXiv:1310.1757): the l tokens that come last
in a random order are a random set of l tokens, and the first of them is each with probability 1 / l. Divided by L, it
is an upper bound in nats per token on the negative log-likelihood of a model that draws the order at random. A random
order of a row is a random order of each of its documents, and documents do not attend to each other, so the bound
holds for each document of a packed row.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.store import Store
from lmjax.objectives.base import Batch, Features, Forward, NanoRun, ObjectiveConfig
from lmjax.objectives.divergences import Measure
from lmjax.objectives.masked_lm import MaskedText
from lmjax.objectives.rows import pad
from lmjax.objectives.samples import Sample, beginning, continuation
from lmjax.objectives.sums import LossSum


class MaskedDiffusionConfig(ObjectiveConfig):
    """Settings of masked diffusion, which has none of its own."""


@dataclasses.dataclass(frozen=True)
class MaskedDiffusion(MaskedText):
    """Predicts the original tokens at masked positions, for rows with any share of masked tokens.

    The number of masked tokens differs from row to row, so the features have a place for every text token of a row:
    `weights` is 1 at each of them, and `factors` is L / l at the masked ones and 0 at the others.
    """

    config: MaskedDiffusionConfig
    name: ClassVar[str] = "masked_diffusion"
    # What its loss sums is not weighted like the targets of other objectives, so it cannot share their pass.
    shares_logits: ClassVar[bool] = False
    unmasks: ClassVar[bool] = True
    # Its loss leaves that of the unigram distribution late: small batches, and no large learning rate, shorten this.
    nano: ClassVar[Mapping[str, NanoRun]] = {"encoder": NanoRun(1200, 8, 2e-3)}

    def transform(self, features: Features, rng: np.random.Generator) -> Features:
        """Returns the features with masked `tokens`, and those of all text tokens, each `[length]`.

        They are `prediction_positions`, `targets`, `weights` and `factors`; places after the last text token have
        weight 0 and position 0.
        """
        tokens, maskable = features["tokens"], self.maskable(features)
        total = len(maskable)
        count = int(rng.integers(1, total + 1)) if total else 0
        chosen = rng.permutation(total)[:count]
        masked, factors = tokens.copy(), np.zeros(total, np.float32)
        masked[maskable[chosen]] = self.tokenizer.mask_id
        factors[chosen] = total / max(count, 1)
        return {
            **features,
            "tokens": masked,
            "prediction_positions": pad(maskable, self.length),
            "targets": pad(tokens[maskable], self.length, self.tokenizer.pad_id),
            "weights": pad(np.ones(total), self.length, dtype=np.float32),
            "factors": pad(factors, self.length, dtype=np.float32),
        }

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the sums over the masked tokens, to be divided by the number of all text tokens."""
        weighted = {**batch, "weights": batch["weights"] * batch["factors"]}
        sums = super().losses(forward, weighted)[self.name]
        return {self.name: sums.replace(weight=jnp.sum(batch["weights"]))}

    def divergences(self, forward: Forward, other: Forward, batch: Batch, measure: Measure) -> dict[str, jax.Array]:
        """Returns the sums over the masked tokens, with the factors of the losses."""
        weighted = {**batch, "weights": batch["weights"] * batch["factors"]}
        return super().divergences(forward, other, weighted, measure)

    def sample(self, store: Store, room: int) -> Sample:
        """Returns the beginning of a text, for the model to continue."""
        return continuation(beginning(store, room), self.tokenizer, sampled=True)
