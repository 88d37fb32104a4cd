"""Scaling laws: known constants are recovered within their intervals, and budgets are spent as the law says."""

import numpy as np
import pytest
from scipy import optimize

from lmjax.errors import FlagError
from lmjax.evaluation import scaling
from lmjax.evaluation.scaling import NAMES, Law, fit

# The constants of Hoffmann et al. 2022, equation 10.
TRUE = Law(1.69, 406.4, 410.7, 0.34, 0.28)
N = np.repeat(np.geomspace(1e7, 1e9, 5), 5)
D = np.tile(np.geomspace(1e8, 2e10, 5), 5)


def noisy(seed, deviation=0.002):
    return TRUE.loss(N, D) * np.exp(np.random.default_rng(seed).normal(0, deviation, len(N)))


def test_constants_without_noise_are_exact():
    found = fit(N, D, TRUE.loss(N, D), resamples=3)
    assert found.law == pytest.approx(TRUE, rel=1e-6)
    assert found.error < 1e-9


def test_constants_are_recovered_within_their_intervals():
    """95 % of the intervals hold the truth; of 4 seeds and 5 constants, which fail together, most do."""
    held = []
    for seed in range(4):
        found = fit(N, D, noisy(seed), resamples=60)
        held += [low <= getattr(TRUE, name) <= high for name in NAMES for low, high in [found.interval(name)]]
        (n, low, high), (d, *_) = found.allocation(1e21)
        held.append(low <= TRUE.allocation(1e21)[0] <= high)
        assert 6 * n * d == pytest.approx(1e21)
        assert found.interval("alpha")[1] - found.interval("alpha")[0] < 0.1, (
            "intervals that hold everything say nothing"
        )
    assert np.mean(held) > 0.8


def test_an_outlier_does_not_move_the_law():
    """The Huber loss; squares would follow it."""
    losses = noisy(0, 1e-4)
    losses[12] *= 1.3
    assert fit(N, D, losses, resamples=2).law == pytest.approx(TRUE, rel=0.05)


def test_lbfgs_finds_nothing_better():
    """The optimum is that of the paper's method, from the end and from a start beside it."""
    losses = noisy(1)
    columns = np.log(np.stack([N, D, losses]))
    e, a, b, alpha, beta = fit(N, D, losses, resamples=2).law
    end = np.array([np.log(a), np.log(b), np.log(e), alpha, beta])
    for start in (end, end + np.array([0.3, -0.3, 0.05, 0.02, -0.02])):
        options = {"maxiter": 300}
        found = optimize.minimize(scaling._objective, start, (columns,), method="L-BFGS-B", options=options)
        assert found.fun >= scaling._objective(end, columns) * (1 - 1e-6)


def test_the_best_size_for_a_budget_has_the_lowest_loss():
    n, d = TRUE.allocation(1e20)
    for factor in (0.8, 1.25):
        assert TRUE.loss(n, d) < TRUE.loss(n * factor, d / factor)
    assert 6 * n * d == pytest.approx(1e20)


def test_too_little_is_refused():
    with pytest.raises(FlagError, match=r"there are 5 runs of 1 size\(s\) and 5 number\(s\) of tokens"):
        fit(N[:5], D[:5], TRUE.loss(N[:5], D[:5]))
    with pytest.raises(FlagError, match="leave out runs that diverged"):
        fit(N, D, np.full(25, np.nan))
