"""Scaling laws: the loss as a function of parameters and tokens, fitted to runs, and what it says of a budget.

L(N, D) = E + A / N**alpha + B / D**beta (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3, equation 2), fitted by
their approach 3: the Huber loss of the logarithms, from a grid of starts (equation 3). The loss is minimised to
convergence here: stopped early, it gave the paper too narrow intervals (Besiroglu et al. 2024, arXiv:2404.10102,
section 3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from lmjax.errors import FlagError
from lmjax.streams import random_stream

# Where the Huber loss of a logarithm turns from squares to absolute values (appendix D.4).
_DELTA = 1e-3
# The starts of appendix D.3, as logarithms of A, B and E, and the exponents.
_STARTS = (
    tuple(range(0, 30, 5)),
    tuple(range(0, 30, 5)),
    (-1.0, -0.5, 0.0, 0.5, 1.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
)
# The best starts, by their loss before any step, are followed.
_FOLLOWED = 40
RESAMPLES = 200
_BOUNDS = (2.5, 97.5)
# FLOPs of a token and parameter in training, forward and backward.
_FLOPS = 6
NAMES = ("E", "A", "B", "alpha", "beta")


class Law(NamedTuple):
    """The constants of L(N, D) = E + A / N**alpha + B / D**beta.

    Attributes:
        E: the loss that no model can go below, in the unit of the losses.
        A: factor of the term of parameters.
        B: factor of the term of tokens.
        alpha: exponent of parameters.
        beta: exponent of tokens.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Returns the loss of models of so many parameters trained on so many tokens."""
        return self.E + self.A / np.power(parameters, self.alpha) + self.B / np.power(tokens, self.beta)

    def allocation(self, flops: float) -> tuple[float, float]:
        """Returns the parameters and tokens with the lowest loss for 6 * parameters * tokens = `flops` (equation 4)."""
        total = self.alpha + self.beta
        factor = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        parameters = factor * (flops / _FLOPS) ** (self.beta / total)
        return float(parameters), float(flops / _FLOPS / parameters)


class Fitted(NamedTuple):
    """A law with its uncertainty.

    Attributes:
        law: the constants that fit all runs best.
        draws: those that fit bootstrap draws of the runs.
        error: the root of the mean squared residual of the logarithm of the loss.
    """

    law: Law
    draws: tuple[Law, ...]
    error: float

    def interval(self, name: str) -> tuple[float, float]:
        """Returns the ends of the 95 % interval of a constant, by the bootstrap's percentiles."""
        low, high = np.percentile([getattr(law, name) for law in self.draws], _BOUNDS)
        return float(low), float(high)

    def allocation(self, flops: float) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Returns parameters and tokens for a budget, each with the ends of its 95 % interval."""
        drawn = np.percentile([law.allocation(flops) for law in self.draws], _BOUNDS, axis=0)
        return tuple(
            (value, float(low), float(high))
            for value, low, high in zip(self.law.allocation(flops), *drawn, strict=True)
        )


def fit(
    parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float], resamples: int = RESAMPLES
) -> Fitted:
    """Returns the law that fits runs best, with draws of the bootstrap over runs.

    Args:
        parameters: of each run's model.
        tokens: that each run has read.
        losses: of each run.
        resamples: draws of the bootstrap.

    Raises:
        FlagError: there are too few runs, sizes or lengths to tell the five constants.
    """
    n, d, values = (np.asarray(x, np.float64) for x in (parameters, tokens, losses))
    if len(values) < 6 or len(set(n)) < 3 or len(set(d)) < 3:
        raise FlagError(
            f"a scaling law has five constants: give at least 6 runs of 3 sizes and 3 numbers of tokens; there are "
            f"{len(values)} runs of {len(set(n))} size(s) and {len(set(d))} number(s) of tokens"
        )
    if not (np.isfinite(values).all() and min(values.min(), n.min(), d.min()) > 0):
        raise FlagError("a scaling law needs losses, parameters and tokens above 0; leave out runs that diverged")
    columns = np.log(np.stack([n, d, values]))
    starts = np.array(list(itertools.product(*_STARTS)))
    before = np.array([_objective(start, columns) for start in starts])
    order = np.argsort(before, kind="stable")[:_FOLLOWED]
    best = min((_polished(starts[i], columns) for i in order), key=lambda end: _objective(end, columns))
    rng = random_stream(0, "runs of a scaling law")
    drawn = (columns[:, rng.integers(len(values), size=len(values))] for _ in range(resamples))
    # The optimum of a draw is near that of all runs.
    draws = np.stack([_polished(best, each) for each in drawn])
    # A bootstrap of so few runs gives too narrow intervals (Hesterberg 2015, arXiv:1411.5279, section 3.2).
    freedom = len(values) - len(best)
    wider = math.sqrt(len(values) / freedom) * stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975)
    draws = best + wider * (draws - best)
    residuals = _residuals(best, columns)
    return Fitted(_law(best), tuple(map(_law, draws)), float(math.sqrt((residuals**2).mean())))


def _law(point: np.ndarray) -> Law:
    a, b, e, alpha, beta = point.tolist()
    return Law(math.exp(e), math.exp(a), math.exp(b), alpha, beta)


def _terms(point: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns `[3, runs]`, the logarithms of the terms of A, B and E."""
    a, b, e, alpha, beta = point
    return np.stack([a - alpha * columns[0], b - beta * columns[1], np.full_like(columns[0], e)])


def _residuals(point: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns `[runs]`, the predicted logarithms of the losses less the true ones."""
    return np.logaddexp.reduce(_terms(point, columns)) - columns[2]


def _slopes(point: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns `[runs, 5]`, the derivatives of the residuals."""
    terms = _terms(point, columns)
    shares = np.exp(terms - np.logaddexp.reduce(terms))
    return np.concatenate([shares, -shares[:2] * columns[:2]]).T


def _objective(point: np.ndarray, columns: np.ndarray) -> float:
    """Returns the sum of the Huber losses of the residuals, in units of delta squared."""
    return float(special.huber(1.0, _residuals(point, columns) / _DELTA).sum())


def _polished(point: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the optimum to which a point leads, by a trust region.

    The L-BFGS of the paper needs thousands of steps in the narrow valley of this loss, which take fifty times as long.
    """
    found = optimize.least_squares(
        _residuals, point, _slopes, loss="huber", f_scale=_DELTA, x_scale="jac", args=(columns,), max_nfev=200
    )
    return found.x
