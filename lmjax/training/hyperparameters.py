"""The optimizer's config, and traced hyperparameters: the numbers of a run as arrays.

A hyperparameter that is a number (a learning rate, a decay, a dropout rate, the weight of a loss) is an argument of
the compiled step, not a constant in it. So another value needs no new compilation, and several values can train at
once under `vmap`. What changes the program (the optimizer's name, the schedule's shape, dropout or none) is config.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from flax import struct
from pydantic import Field, model_validator

from lmjax.model.dropout import DropoutRates
from lmjax.objectives.sums import NO_PENALTIES, Penalties
from lmjax.schema import Schema
from lmjax.training.optimizers import OPTIMIZERS, Optimizers
from lmjax.training.optimizers.base import Optimizer
from lmjax.training.schedules import SCHEDULES, Schedules, Shape
from lmjax.training.sparsity import SparsityConfig

PyTree = Any

# The most warm-up steps where the config leaves them to the run's length; the nano models' 600 steps are tuned to it.
_LONGEST_WARMUP = 40


class _Common(Schema):
    """The fields that all optimizers and schedules have in common."""

    # Only the number of steps that follows from it is traced.
    static: ClassVar[tuple[str, ...]] = ("warmup_share",)

    name: Literal[*OPTIMIZERS] = Field("adamw", description="the optimizer")
    learning_rate: float = Field(1e-3, gt=0, description="the peak learning rate")
    warmup_steps: int | None = Field(
        0,
        ge=0,
        description="steps of linear warm-up from zero; none: warmup_share of the run, or else a tenth, but at most 40",
    )
    warmup_share: float | None = Field(
        None, ge=0, le=1, description="share of the run that the warm-up takes where warmup_steps is none"
    )
    final_ratio: float = Field(0.1, ge=0, le=1, description="the last learning rate divided by the peak")
    schedule: Literal[*SCHEDULES, "joined"] = Field("cosine", description="the schedule after the warm-up")

    weight_decay: float = Field(0.1, ge=0, description="only of kernels and embeddings")
    decoupled: bool | None = Field(
        None, description="true: weight decay beside the gradient; false: in it (L2); none: as in the optimizer's paper"
    )
    clip_norm: float | None = Field(1.0, gt=0, description="greatest global norm of gradients; none: no clipping")
    ema_decay: float | None = Field(
        None, ge=0, lt=1, description="decay of an average of the parameters, to be evaluated; none: no average"
    )
    average_from: int | None = Field(
        None, ge=1, description="step from which on parameters are averaged with equal weights (SWA); none: no average"
    )
    average_every: int = Field(1, ge=1, description="steps between the parameters in the equal average")
    group_patterns: tuple[str, ...] = Field(
        (), description="regular expressions searched in paths such as embedding/table; the first match applies"
    )
    group_factors: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (), description="factor on each pattern's learning rate; 0: frozen"
    )
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate for each layer further down")

    spike_factor: float | None = Field(
        None, gt=1, description="skip updates whose gradient norm is this many times the usual one; none: skip none"
    )
    spike_average: float = Field(0.98, ge=0, lt=1, description="decay of the average of gradient norms, the usual norm")
    spike_warmup: int = Field(50, ge=1, description="norms in the average before an update can be skipped")

    sparsity: SparsityConfig = SparsityConfig()


_GROUPS = OPTIMIZERS | {name: field.annotation for name, field in Schedules.model_fields.items()}


class OptimizerConfig(Schedules, Optimizers, _Common):
    """The optimizer and its schedule: common fields, and a group for each that has fields of its own."""

    moved: ClassVar[dict[str, str]] = {"muon_rms": "muon.rms"} | {
        field: " or ".join(f"{name}.{field}" for name, group in _GROUPS.items() if field in group.model_fields)
        for field in {field for group in _GROUPS.values() for field in group.model_fields}
        if field not in _GROUPS.keys() | _Common.model_fields.keys()
    }

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        joined = self.joined
        for broken, message in (
            (
                len(self.group_patterns) != len(self.group_factors),
                f"group_patterns has {len(self.group_patterns)} and group_factors {len(self.group_factors)} entries; "
                "give each pattern its factor",
            ),
            (
                len(joined.schedules) != len(joined.shares) or bool(joined.schedules) != (self.schedule == "joined"),
                f"schedule={self.schedule}, joined.schedules={joined.schedules} and joined.shares={joined.shares}: "
                "joined, and only it, takes schedules and as many shares",
            ),
            (
                self.warmup_steps is not None and self.warmup_share is not None,
                f"warmup_steps={self.warmup_steps} and warmup_share={self.warmup_share}: both say how long the warm-up "
                "is; give one, and none for the other",
            ),
            (
                self.ema_decay is not None and self.average_from is not None,
                f"ema_decay={self.ema_decay} and average_from={self.average_from}: a run keeps one average; give one",
            ),
            (
                self.sparsity.amount > 0 and (self.averages or self.name == "schedule_free"),
                f"sparsity.amount={self.sparsity.amount}: an average of parameters (ema_decay, average_from, name="
                "schedule_free) has numbers where the pruned ones are zero; leave it out",
            ),
            (
                self.rule.schedules and self.schedule not in self.rule.schedules,
                f"name={self.name} takes schedule={' or '.join(self.rule.schedules)} (given: {self.schedule})",
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

    @property
    def averages(self) -> bool:
        """Whether the run keeps an average of its parameters."""
        return self.ema_decay is not None or self.average_from is not None

    @property
    def rule(self) -> Optimizer:
        """The chosen optimizer."""
        return getattr(self, self.name)

    def shape(self, name: str) -> Shape:
        """Returns the schedule of this name, with its fields if it has any."""
        return getattr(self, name) if name in Schedules.model_fields else SCHEDULES[name]()

    def warmup(self, steps: int) -> int:
        """Returns the warm-up steps of a run of `steps`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return min(_LONGEST_WARMUP, steps // 10) if self.warmup_share is None else int(self.warmup_share * steps)


def _is_number(annotation: Any) -> bool:
    """Returns whether a field holds a number, several numbers, or a number or None."""
    return annotation in (int, float) or any(map(_is_number, typing.get_args(annotation)))


@functools.cache
def _numbers_type(schema: type[Schema]) -> tuple[type, tuple[str, ...]]:
    """Returns a dataclass (a pytree) for a config's numbers, and the names of its fields that are groups."""
    annotations = {name: field.annotation for name, field in schema.model_fields.items()}
    groups = [n for n, a in annotations.items() if isinstance(a, type) and issubclass(a, Schema)]
    numbers = [n for n, a in annotations.items() if _is_number(a) and n not in getattr(schema, "static", ())]
    made = dataclasses.make_dataclass(
        f"{schema.__name__}Numbers",
        [(name, Any) for name in [*numbers, *groups]],
        frozen=True,
        namespace={"replace": dataclasses.replace},
    )
    return jax.tree_util.register_dataclass(made, [*numbers, *groups], []), tuple(groups)


def numbers(config: Schema) -> Any:
    """Returns the numbers of a config as float32 arrays: an object whose attributes are the config's fields.

    Fields that are not numbers, and those that the config's class lists in `static`, are left out. A group is an object
    of the same kind. `replace(name=array)` returns a copy.
    """
    made, groups = _numbers_type(type(config))
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(made)}
    return made(**{name: numbers(value) if name in groups else _as_float32(value) for name, value in values.items()})


def untraced(config: OptimizerConfig) -> dict[str, Any]:
    """Returns what of an optimizer's config decides the compiled step: its values without the traced numbers.

    Of a traced number that may be None it says whether it is, and of factors on the learning rate whether they are 0
    (frozen) and whether there are any.
    """
    return _untraced(config) | {
        "group_factors": [factor == 0 for factor in config.group_factors],
        "layer_decay": config.layer_decay == 1,
        # Only the number of steps that follows from them is used, and it is traced.
        "warmup_steps": None,
        "warmup_share": None,
    }


def _untraced(config: Schema) -> dict[str, Any]:
    found = {}
    for name, value in config:
        if isinstance(value, Schema):
            found[name] = _untraced(value)
        elif name in getattr(config, "static", ()) or not _is_number(type(config).model_fields[name].annotation):
            found[name] = value
        else:
            found[name] = ["traced"] * len(value) if isinstance(value, tuple) else value is None
    return found


def _as_float32(value: Any) -> jax.Array | None:
    return None if value is None else jnp.asarray(value, jnp.float32)


class Hyperparameters(struct.PyTreeNode):
    """The traced hyperparameters of a run: float32 arrays, passed to the step beside the state.

    Attributes:
        optimizer: the numbers of `OptimizerConfig` under the same names: `h.optimizer.adamw.beta1`.
        total_steps: the step at which the schedule ends.
        dropout: the dropout rates.
        loss_weights: weight of every objective in the loss.
        penalties: the terms added to the cross entropy.
        width_factor: how many times as wide as muP's base the model is; None: the standard parametrisation.
    """

    optimizer: Any
    total_steps: jax.Array
    dropout: DropoutRates
    loss_weights: dict[str, jax.Array]
    penalties: Penalties
    width_factor: jax.Array | None = None

    @classmethod
    def build(
        cls,
        config: OptimizerConfig,
        *,
        steps: int,
        dropout: DropoutRates,
        loss_weights: dict[str, float],
        penalties: Penalties = NO_PENALTIES,
        width_factor: float | None = None,
    ) -> Hyperparameters:
        """Returns the numbers of a config as float32 arrays."""
        optimizer = numbers(config).replace(warmup_steps=config.warmup(steps))
        return jax.tree.map(_as_float32, cls(optimizer, steps, dropout, loss_weights, penalties, width_factor))
