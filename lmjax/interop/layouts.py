"""Layouts: how parameters of ours stand in the tensors of a checkpoint, both ways.

Ours are kernels `[*inputs, *outputs]`. A layout never computes: it reshapes, transposes, cuts and joins, so that a
checkpoint that is read and written again is bit-equal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

Shape = tuple[int, ...]


class Layout(Protocol):
    """From some parameters of ours to some tensors of theirs, and back."""

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """Returns the shapes of their tensors."""

    def split(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        """Returns our arrays, of these shapes."""

    def join(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns their tensors."""


@dataclasses.dataclass(frozen=True)
class Same:
    """A table or a vector as it is; what has several dimensions here, such as a bias by head, may be flat there.

    Attributes:
        flat: theirs has one dimension.
        leading: dimensions of size one that theirs begins with.
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
    """Kernels of ours in one matrix of theirs, side by side along its outputs. Their biases too: no inputs.

    Attributes:
        inputs: dimensions of our kernels that are summed over; 0: biases.
        transposed: theirs is `[outputs, inputs]`, as torch's Linear; off: `[inputs, outputs]`, as GPT-2's Conv1D.
        by_head: theirs goes through the heads, and in each through the kernels, as GPT-NeoX.
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
    """A kernel `[experts, inputs, outputs]` of ours, and a matrix for every expert of theirs."""

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
