"""Direct preference optimisation: the better of two answers becomes likelier, measured from a reference model.

| loss | of the margin of the log-ratios d | source |
|---|---|---|
| sigmoid | -log sigmoid(beta d) | Rafailov et al. 2023, arXiv:2305.18290, equation 7 |
| ipo | (d - 1 / (2 beta))**2 | Azar et al. 2023, arXiv:2310.12036, equation 17, whose tau is beta |
| hinge | max(0, 1 - beta d) | Zhao et al. 2023, arXiv:2305.10425, section 2.2, with log-ratios |

The model of the run's `init_from` is the reference. Its log-probabilities are computed once, before training.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from lmjax.objectives.base import Batch, Forward
from lmjax.objectives.preference import Preference, PreferenceConfig, pair_sums
from lmjax.objectives.sums import LossSum


class DPOConfig(PreferenceConfig):
    """Settings of direct preference optimisation."""

    beta: float = Field(0.1, gt=0, description="how strongly the reference holds the model; lower: it moves further")
    loss: Literal["sigmoid", "ipo", "hinge"] = Field("sigmoid", description="the loss of a margin")
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="share of preferences that are taken to be wrong (conservative DPO: Mitchell 2023); for sigmoid",
    )
    per_token: bool = Field(
        False, description="log-ratios are divided by the tokens of an answer, as some programs do for ipo"
    )

    @model_validator(mode="after")
    def _smoothed(self) -> "DPOConfig":
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing={self.label_smoothing} is for loss=sigmoid, not {self.loss}; leave it 0")
        return self


@dataclasses.dataclass(frozen=True)
class DPO(Preference):
    """Learns from pairs of answers, with a reference."""

    config: DPOConfig
    name: ClassVar[str] = "dpo"
    refers: ClassVar[bool] = True

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the sums over the pairs; rewards are beta times the log-ratios."""
        ratios, counts = self.log_ratios(forward, batch)
        compared = ratios / counts if self.config.per_token else ratios
        losses = self.pair_losses(compared[:, 0] - compared[:, 1])
        shown = {"chosen_log_ratio": ratios[:, 0], "rejected_log_ratio": ratios[:, 1]}
        return {self.name: pair_sums(losses, self.config.beta * compared, batch["row_weights"], shown)}

    def pair_losses(self, margins: jax.Array) -> jax.Array:
        """Returns the loss of each margin of log-ratios, float32 `[batch]`."""
        c, scaled = self.config, self.config.beta * margins
        if c.loss == "ipo":
            return jnp.square(margins - 1 / (2 * c.beta))
        if c.loss == "hinge":
            return jnp.maximum(0.0, 1.0 - scaled)
        return (1 - c.label_smoothing) * jax.nn.softplus(-scaled) + c.label_smoothing * jax.nn.softplus(scaled)
