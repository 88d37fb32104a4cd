"""The base class of optimizers: a group of config fields, and the rule that turns gradients into updates."""

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
    """One optimizer. Its rule reads numbers from `h`, as traced arrays, and everything else from `self`.

    Attributes:
        decay_in_gradient: whether weight decay is added to the gradient (L2) if `decoupled` is None.
        schedules: the only schedules that it can be used with; empty: all.
        elementwise: whether the size of an update is that of the learning rate whatever the gradient's size is, element
            by element, as muP's factors for Adam require.
        static: names of numeric fields that determine shapes or the program, and so are constants of the program.
    """

    decay_in_gradient: ClassVar[bool] = False
    schedules: ClassVar[tuple[str, ...]] = ()
    elementwise: ClassVar[bool] = False
    static: ClassVar[tuple[str, ...]] = ()

    def direction(self, h: Numbers) -> Transformation:
        """Returns a transformation of gradients into a direction, before the learning rate scales and negates it.

        Args:
            h: this group's numbers as float32 scalars, under the names of its fields.
        """
        raise NotImplementedError

    def wrapped(self, h: Numbers, optimizer: Transformation, rate: jax.Array) -> Transformation:
        """Returns the whole optimizer with this one's wrapper, if it has any.

        Args:
            h: this group's numbers.
            optimizer: the direction with weight decay and learning rate.
            rate: the learning rate.
        """
        del h, rate
        return optimizer


class OptimizerWithMoments(Optimizer):
    """An optimizer with an average of gradients, whose dtype can be chosen."""

    moment_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the average of gradients (first moment or momentum)"
    )
