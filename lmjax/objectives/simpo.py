"""Simple preference optimisation: the margin of mean log-probabilities of two answers, without a reference.

Meng et al. 2024, arXiv:2405.14734, equation 6.
"""

import dataclasses
from typing import ClassVar

import jax
from pydantic import Field

from lmjax.objectives.base import Batch, Forward
from lmjax.objectives.preference import Preference, PreferenceConfig, pair_sums
from lmjax.objectives.sums import LossSum


class SimPOConfig(PreferenceConfig):
    """Settings of simple preference optimisation."""

    beta: float = Field(2.0, gt=0, description="factor on the mean log-probability of an answer")
    gamma: float = Field(
        1.0, ge=0, description="the margin of the rewards that is aimed at; the paper: 0.3 to 0.5 beta"
    )


@dataclasses.dataclass(frozen=True)
class SimPO(Preference):
    """Learns from pairs of answers, without a reference."""

    config: SimPOConfig
    name: ClassVar[str] = "simpo"

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the sums over the pairs; rewards are beta times the mean log-probabilities."""
        totals, counts = self.log_probs(forward, batch)
        found = totals / counts
        rewards = self.config.beta * found
        losses = jax.nn.softplus(self.config.gamma - (rewards[:, 0] - rewards[:, 1]))
        shown = {"chosen_log_prob": found[:, 0], "rejected_log_prob": found[:, 1]}
        return {self.name: pair_sums(losses, rewards, batch["row_weights"], shown)}
