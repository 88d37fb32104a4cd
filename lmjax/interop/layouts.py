"""Layouts: conversions between lmjax's parameters ("ours") and the tensors of a checkpoint ("theirs").

Our kernels are `[*inputs, *outputs]`. A layout only reshapes, transposes, splits and joins, without arithmetic, so that
a checkpoint that is read and written again is equal bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

Shape = tuple[int, ...]


class Layout(Protocol):
    """Converts some of our parameters to tensors of a checkpoint, and back."""

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """Returns the shapes of their tensors."""

    def split(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        """Returns our arrays, of these shapes."""

    def join(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns their tensors."""


@dataclasses.dataclass(frozen=True)
class Same:
    """An array with the same order of elements on both sides, such as a table or vector; the shapes may differ.

    Attributes:
        flat: the checkpoint's tensor has one dimension, although ours may have several, such as a bias by head.
        leading: dimensions of size one at the beginning of the checkpoint's tensor.
    """

    flat: bool = False
    leading: int = 0

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """Returns the shapes of their tensors."""
        return [(1,) * self.leading + ((math.prod(s),) if self.flat else s) for s in ours]

    def split(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        """Returns our arrays, of these shapes."""
        return [t.reshape(s) for t, s in zip(theirs, ours, strict=True)]

    def join(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns their tensors."""
        return [x.reshape(s) for x, s in zip(ours, self.shapes([x.shape for x in ours]), strict=True)]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Several of our kernels, joined along their outputs into one matrix of the checkpoint; or their biases.

    Attributes:
        inputs: the number of input dimensions of our kernels, which are summed over; 0: biases.
        transposed: the matrix is `[outputs, inputs]`, as in torch's Linear; off: `[inputs, outputs]`, as in GPT-2's
            Conv1D.
        by_head: the outputs are ordered by head and then by kernel, as in GPT-NeoX; off: by kernel.
    """

    inputs: int = 1
    transposed: bool = True
    by_head: bool = False

    def _sizes(self, shape: Shape) -> tuple[int, int]:
        return math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :])

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """Returns the shapes of their tensors."""
        rows, columns = self._sizes(ours[0])[0], sum(self._sizes(s)[1] for s in ours)
        if not self.inputs:
            return [(columns,)]
        return [(columns, rows) if self.transposed else (rows, columns)]

    def split(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        """Returns our arrays, of these shapes."""
        whole = theirs[0].T if self.inputs and self.transposed else theirs[0]
        whole = whole.reshape(self._sizes(ours[0])[0], -1)
        if self.by_head:
            heads, width = ours[0][self.inputs :]
            parts = np.moveaxis(whole.reshape(len(whole), heads, len(ours), width), 2, 0)
        else:
            parts = np.split(whole, np.cumsum([self._sizes(s)[1] for s in ours])[:-1], axis=1)
        return [part.reshape(s) for part, s in zip(parts, ours, strict=True)]

    def join(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns their tensors."""
        if self.by_head:
            heads, width = ours[0].shape[self.inputs :]
            parts = np.stack([x.reshape(-1, heads, width) for x in ours], axis=2)
            whole = parts.reshape(len(parts), -1)
        else:
            whole = np.concatenate([x.reshape(self._sizes(x.shape)) for x in ours], axis=1)
        if not self.inputs:
            return [whole[0]]
        return [whole.T if self.transposed else whole]


@dataclasses.dataclass(frozen=True)
class PerExpert:
    """Our kernel `[experts, inputs, outputs]`, and a matrix of the checkpoint for every expert."""

    transposed: bool = True

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """Returns the shapes of their tensors."""
        experts, *matrix = ours[0]
        return [tuple(matrix[::-1] if self.transposed else matrix)] * experts

    def split(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        """Returns our arrays, of these shapes."""
        return [np.stack([t.T if self.transposed else t for t in theirs]).reshape(ours[0])]

    def join(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns their tensors."""
        return [x.T if self.transposed else x for x in ours[0]]
