"""The arrays that a training step reads and never changes, beside the state that it does change."""

from __future__ import annotations

from typing import Any, NamedTuple

from lmjax.model.parameters import overlaid
from lmjax.training.teacher import Recorded, Teacher

PyTree = Any


class Fixed(NamedTuple):
    """Arrays that no gradient, no optimizer state and no checkpoint contains; a resumed run reads them again.

    They are an argument of the compiled steps: arrays that a traced function captures would be copied into its program.

    Attributes:
        base: the parameters of the model that are not trained; None: all are.
        teacher: another model, whose predictions a loss compares with; None: there is none.
    """

    base: PyTree | None = None
    teacher: Teacher | Recorded | None = None

    def whole(self, params: PyTree) -> PyTree:
        """Returns all parameters of the model, given those that are trained."""
        return params if self.base is None else overlaid(self.base, params)


NOTHING_FIXED = Fixed()
