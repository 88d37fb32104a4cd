"""What an optimizer is told: its config, and the numbers of a run as traced arrays.

A hyperparameter that is a number (a learning rate, a decay, a rate of dropout, the weight of a loss) is an argument of
the compiled step, never a constant of it. Another value compiles nothing anew, and many values train at once under
`vmap`. What changes the program (the optimizer's name, the schedule's shape, dropout or none) is config.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

import jax
import jax.numpy as jnp
from flax import struct
from pydantic import Field, model_validator

from lmjax.model.config import DropoutRates
from lmjax.objectives.base import NO_PENALTIES, Penalties
from lmjax.schema import Schema

PyTree = Any
Shape = Literal["constant", "linear", "cosine", "rsqrt", "wsd", "polynomial"]

# Steps, where the config leaves the warm-up to the run's length: what the nano models' 600 steps were tuned with.
_LONGEST_WARMUP = 40


class OptimizerConfig(Schema):
    """The optimizer, its schedule, and their numbers; one flat group, where the description says who reads a field."""

    name: Literal["adamw", "adam", "sgd", "adafactor", "lion", "muon", "schedule_free", "sophia"] = Field(
        "adamw", description="what makes updates of gradients"
    )
    learning_rate: float = Field(1e-3, gt=0, description="the peak")
    warmup_steps: int | None = Field(
        0, ge=0, description="steps of linear warm-up from zero; none: a tenth of the run, but at most 40"
    )
    final_ratio: float = Field(0.1, ge=0, le=1, description="the last learning rate over the peak")
    schedule: Literal[Shape, "joined"] = Field("cosine", description="what follows the warm-up")
    cooldown: float = Field(0.2, gt=0, le=1, description="wsd: the share of the steps in which the rate falls")
    cooldown_shape: Literal["sqrt", "linear"] = Field("sqrt", description="wsd: falls as 1 - sqrt(share) or as a line")
    power: float = Field(2.0, gt=0, description="polynomial: the exponent")
    schedules: tuple[Shape, ...] = Field((), description="joined: what follows one after the other")
    shares: tuple[Annotated[float, Field(gt=0)], ...] = Field((), description="joined: the share that each lasts")

    beta1: float = Field(0.9, ge=0, lt=1, description="of the first moment; all but sgd and adafactor")
    beta2: float = Field(0.95, ge=0, lt=1, description="of the second moment (sophia: of the curvature); lion's second")
    epsilon: float = Field(1e-8, gt=0, description="below the division: adamw, adam, schedule_free, muon, sophia")
    momentum: float = Field(0.95, ge=0, lt=1, description="sgd and muon's matrices")
    nesterov: bool = Field(True, description="sgd and muon's matrices: look ahead by one step of momentum")
    muon_rms: float = Field(0.2, gt=0, description="muon: root mean square of a matrix's update; 0.2 is near AdamW's")
    decay_exponent: float = Field(0.8, gt=0, description="adafactor: the second moment's decay is 1 - step**-exponent")
    factor_from: int = Field(128, ge=1, description="adafactor: matrices with this many rows and columns are factored")
    update_clip: float = Field(1.0, gt=0, description="adafactor: root mean square that updates are clipped to")
    parameter_scale: bool = Field(True, description="adafactor: the rate is relative to the size of the parameter")
    gamma: float = Field(0.05, gt=0, description="sophia: factor on the curvature; larger clips less")
    curvature_every: int = Field(10, ge=1, description="sophia: steps between estimates of the curvature")
    moment_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="first moments and momentum in memory; all but adafactor and schedule_free"
    )

    weight_decay: float = Field(0.1, ge=0, description="kernels and embeddings only")
    decoupled: bool | None = Field(
        None, description="decay beside the gradient, or in it (L2); none: in it for adam and sgd, else beside it"
    )
    clip_norm: float | None = Field(1.0, gt=0, description="global norm of clipped gradients; none: no clipping")
    ema_decay: float | None = Field(None, ge=0, lt=1, description="evaluate averaged parameters; none: no average")
    group_patterns: tuple[str, ...] = Field(
        (), description="regular expressions searched in paths such as embedding/table; the first that matches counts"
    )
    group_factors: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (), description="factor on each pattern's learning rate; 0: frozen"
    )
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate for every layer further down")

    spike_factor: float | None = Field(
        None, gt=1, description="leave out updates whose gradient norm is this many times the usual; none: leave none"
    )
    spike_average: float = Field(0.98, ge=0, lt=1, description="decay of the average that is the usual norm")
    spike_warmup: int = Field(50, ge=1, description="norms that the average must hold before an update is left out")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for broken, message in (
            (
                len(self.group_patterns) != len(self.group_factors),
                f"group_patterns has {len(self.group_patterns)} and group_factors {len(self.group_factors)} entries; "
                "give each pattern its factor",
            ),
            (
                len(self.schedules) != len(self.shares) or bool(self.schedules) != (self.schedule == "joined"),
                f"schedule={self.schedule}, schedules={self.schedules} and shares={self.shares}: joined, and only it, "
                "takes schedules and as many shares",
            ),
            (
                self.name == "schedule_free" and (self.schedule != "constant" or not self.beta1),
                f"name=schedule_free averages where others let the rate fall; it takes schedule=constant (given: "
                f"{self.schedule}) and a beta1 above 0",
            ),
        ):
            if broken:
                raise ValueError(message)
        for pattern in self.group_patterns:
            try:
                re.compile(pattern)
            except re.error as e:
                raise ValueError(f"group_patterns: {pattern!r} is no regular expression: {e}") from e
        return self

    def warmup(self, steps: int) -> int:
        """Returns the steps of warm-up of a run of `steps`."""
        return min(_LONGEST_WARMUP, steps // 10) if self.warmup_steps is None else self.warmup_steps


class Hyperparameters(struct.PyTreeNode):
    """The numbers of a run, float32 arrays that ride beside the state; `OptimizerConfig` says what most of them are.

    Attributes:
        total_steps: the step at which the schedule ends.
        dropout: rates of dropout.
        loss_weights: weight of every objective in the loss.
        penalties: what is added to the cross entropy.
    """

    learning_rate: jax.Array
    warmup_steps: jax.Array
    total_steps: jax.Array
    final_ratio: jax.Array
    cooldown: jax.Array
    power: jax.Array
    shares: jax.Array
    beta1: jax.Array
    beta2: jax.Array
    epsilon: jax.Array
    momentum: jax.Array
    muon_rms: jax.Array
    decay_exponent: jax.Array
    update_clip: jax.Array
    gamma: jax.Array
    curvature_every: jax.Array
    weight_decay: jax.Array
    clip_norm: jax.Array | None
    ema_decay: jax.Array | None
    group_factors: jax.Array
    layer_decay: jax.Array
    spike_factor: jax.Array | None
    spike_average: jax.Array
    spike_warmup: jax.Array
    dropout: DropoutRates
    loss_weights: dict[str, jax.Array]
    penalties: Penalties

    @classmethod
    def build(
        cls,
        config: OptimizerConfig,
        *,
        steps: int,
        dropout: DropoutRates,
        loss_weights: dict[str, float],
        penalties: Penalties = NO_PENALTIES,
    ) -> Hyperparameters:
        """Returns the numbers of a config as arrays."""
        own = {
            "total_steps": steps,
            "warmup_steps": config.warmup(steps),
            "dropout": dropout,
            "loss_weights": loss_weights,
            "penalties": penalties,
        }
        numbers = {name: getattr(config, name) for name in cls.__dataclass_fields__ if name not in own}
        arrays = {name: None if value is None else jnp.asarray(value, jnp.float32) for name, value in numbers.items()}
        return cls(**arrays, **jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), own))
