"""Odds ratio preference optimisation: the better answer is learned, and its odds are raised over those of the worse.

Hong et al. 2024, arXiv:2403.07691, equations 3 to 7. There is no reference. Log-probabilities are means over the tokens
of an answer, and only those tokens are learned, not the prompt.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from pydantic import Field

from lmjax.objectives.base import Batch, Forward
from lmjax.objectives.preference import Preference, PreferenceConfig, pair_sums
from lmjax.objectives.sums import LossSum

# An answer of probability 1 has infinite odds; this is the largest log-probability whose odds are used.
_MOST = -1e-6


class ORPOConfig(PreferenceConfig):
    """Settings of odds ratio preference optimisation."""

    beta: float = Field(0.1, ge=0, description="weight of the odds ratio; the paper's lambda")


def log_odds(log_probs: jax.Array) -> jax.Array:
    """Returns log(p / (1 - p)) for log(p), in float32 `[...]`."""
    below = jnp.minimum(log_probs, _MOST)
    return below - jnp.log(-jnp.expm1(below))


@dataclasses.dataclass(frozen=True)
class ORPO(Preference):
    """Learns the better of two answers and the ratio of their odds."""

    config: ORPOConfig
    name: ClassVar[str] = "orpo"

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the sums over the pairs; rewards are beta times the mean log-probabilities."""
        totals, counts = self.log_probs(forward, batch)
        found = totals / counts
        odds = log_odds(found)
        ratios = odds[:, 0] - odds[:, 1]
        losses = self.config.beta * jax.nn.softplus(-ratios) - found[:, 0]
        shown = {"log_odds_ratio": ratios, "chosen_log_prob": found[:, 0], "rejected_log_prob": found[:, 1]}
        return {self.name: pair_sums(losses, self.config.beta * found, batch["row_weights"], shown)}
