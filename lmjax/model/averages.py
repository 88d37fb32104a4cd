"""Averages of the parameters of several models: weighted, on the sphere, and sums of task vectors.

Parameters are dicts of float32 arrays by path. Models that began with the same parameters lie in one basin of the loss,
so that their average is a model too (Wortsman et al. 2022, arXiv:2203.05482); others are not averaged with profit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

Params = Mapping[str, np.ndarray]
_Model = TypeVar("_Model")

# Vectors with a smaller sine of the angle between them are averaged in a straight line, where no division is unstable.
_LEAST_SINE = 1e-4


def weighted(models: Sequence[Params], weights: Sequence[float]) -> dict[str, np.ndarray]:
    """Returns the average of several models; the weights are divided by their sum."""
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    return {path: _summed([model[path] for model in models], shares) for path in models[0]}


def _summed(arrays: Sequence[np.ndarray], factors: Sequence[float]) -> np.ndarray:
    """Returns the sum of arrays times factors, float32, computed in float64."""
    total = np.zeros(arrays[0].shape, np.float64)
    for array, factor in zip(arrays, factors, strict=True):
        total += factor * array.astype(np.float64)
    return total.astype(np.float32)


def spherical(first: Params, second: Params, share: float) -> dict[str, np.ndarray]:
    """Returns each array of two models interpolated along the great circle between them (Shoemake 1985, section 3.3).

    Args:
        first: one model.
        second: the other.
        share: 0 gives the first, 1 the second.
    """
    return {path: _slerp(array, second[path], share) for path, array in first.items()}


def _slerp(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    a, b = (x.astype(np.float64) for x in (first, second))
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = np.clip(np.sum(a * b) / lengths, -1, 1) if lengths else 1.0
    angle = np.arccos(cosine)
    if np.sin(angle) < _LEAST_SINE:
        return ((1 - share) * a + share * b).astype(np.float32)
    parts = np.sin([(1 - share) * angle, share * angle]) / np.sin(angle)
    return (parts[0] * a + parts[1] * b).astype(np.float32)


def task_vectors(base: Params, models: Sequence[Params], factors: Sequence[float]) -> dict[str, np.ndarray]:
    """Returns the base plus the sum of factors times what each model has learned (Ilharco et al. 2023, section 2).

    arXiv:2212.04089; a negative factor subtracts a task. Arrays that the base lacks, such as those of a new head, are
    the mean of the models'.
    """
    equal = [1 / len(models)] * len(models)
    return {
        path: _summed([m[path] for m in models], equal)
        if path not in base
        else _summed([base[path], *(m[path] for m in models)], [1 - sum(factors), *factors])
        for path in models[0]
    }


def greedy_soup(
    models: Sequence[_Model], average: Callable[[Sequence[_Model]], _Model], cost: Callable[[_Model], float]
) -> tuple[list[int], list[float]]:
    """Returns which models the greedy soup takes, in the order in which it takes them, and the cost of each alone.

    The models are tried from the best on; each stays if the average with it is no worse (Wortsman et al. 2022, section
    2, recipe 1).

    Args:
        models: the models.
        average: from some of them to their average.
        cost: of a model on a development set; lower is better.
    """
    costs = [cost(model) for model in models]
    order = sorted(range(len(models)), key=lambda i: costs[i])
    taken, best = order[:1], costs[order[0]]
    for i in order[1:]:
        tried = cost(average([models[j] for j in [*taken, i]]))
        if tried <= best:
            taken, best = [*taken, i], tried
    return taken, costs
