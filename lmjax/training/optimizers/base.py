"""What an optimizer is: a group of fields, and the rule that makes updates of gradients with them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax
import optax
from pydantic import Field

from lmjax.schema import Schema

PyTree = Any
Numbers = Any
Transformation = optax.GradientTransformation


class Optimizer(Schema):
    """One optimizer. Its rule takes numbers from `h`, as traced arrays, and everything else from `self`.

    Attributes:
        decay_in_gradient: whether weight decay is added to the gradient (L2) where `decoupled` is none.
        schedules: the only schedules that it can be trained with; empty: all.
        static: numbers that shape the state or the program, and so are constants of it.
    """

    decay_in_gradient: ClassVar[bool] = False
    schedules: ClassVar[tuple[str, ...]] = ()
    static: ClassVar[tuple[str, ...]] = ()

    def direction(self, h: Numbers) -> Transformation:
        """Returns what turns gradients into a direction, which the learning rate is still to scale and to negate.

        Args:
            h: this group's numbers as float32 scalars, under the names of its fields.
        """
        raise NotImplementedError

    def wrapped(self, h: Numbers, optimizer: Transformation, rate: jax.Array) -> Transformation:
        """Returns the whole optimizer, decay and learning rate included, with what this one does around it."""
        del h, rate
        return optimizer


class OptimizerWithMoments(Optimizer):
    """An optimizer that keeps an average of gradients, whose type is free."""

    moment_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the average of gradients, first moment or momentum, in memory"
    )
