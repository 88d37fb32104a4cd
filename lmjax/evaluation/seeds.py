"""Statistics of several runs of the same config with different seeds, and of pairs of configs on the same documents.

A run is a row of numbers, one for each held-out document, whose mean is the run's metric (`DocumentLosses.shares`). The
metric varies with the seed of a run and with the documents; both kinds of noise are in every interval.

A bootstrap that resamples three seeds gives intervals that hold the truth far less often than they say: it loses a
third of the variance and the tails of Student's t. So documents are resampled, in pairs, the deviation that seeds cause
is drawn from a normal distribution, and their sum is divided by the error with which its variance is known, with the
degrees of freedom of Welch (1947) and Satterthwaite (1946). What a seed does to single documents is in both parts, and
is taken out of that of documents (Cameron, Gelbach and Miller 2011, equation 2.13). `experiments/ablations/coverage.py`
measures how often the intervals hold the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from lmjax.streams import random_stream

# Draws of the bootstrap: the smallest p-value is 1 / (DRAWS + 1).
DRAWS = 9999
LEVEL, POWER = 0.05, 0.8
# The mean of more documents is drawn from a normal distribution: it differs from that of the bootstrap by less than
# the draws do.
_RESAMPLED = 5000
# Draws are made in chunks of so many counts.
_CHUNK = 2**22
_QUANTILES, _PLANNED = 20_000, 200


class Interval(NamedTuple):
    """A mean over seeds, the ends of its 95 % interval (NaN for a single seed), and the number of seeds."""

    value: float
    low: float
    high: float
    count: int


class Comparison(NamedTuple):
    """The difference between two configs, in float64 scalars or arrays `[...]`.

    Attributes:
        value: the mean of the first less that of the second.
        low: lower end of the 95 % interval.
        high: upper end.
        p: two-sided p-value of no difference.
        effect: the difference in standard deviations of a single run, corrected for few seeds (Hedges 1981); NaN if
            neither config has two seeds.
        error: standard error of the difference.
        freedom: its degrees of freedom.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    effect: np.ndarray
    error: np.ndarray
    freedom: np.ndarray


def mean_interval(values: Sequence[float]) -> Interval:
    """Returns the mean over seeds and its 95 % interval by Student's t, which holds it 95 % of the time for any count.

    Args:
        values: the metric of each run.
    """
    values = np.asarray(values, np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean, math.nan, math.nan, count)
    half = float(stats.t.ppf(1 - LEVEL / 2, count - 1) * values.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def compare_runs(first: np.ndarray, second: np.ndarray, draws: int = DRAWS) -> Comparison:
    """Returns the difference between two configs over the seeds and the documents that could have been drawn.

    Seeds are not paired: with so few of them, a pairing costs more degrees of freedom than common seeds save noise.
    Where common seeds make the runs of both configs alike, the interval is wider than it needs to be. A config with one
    run takes the noise of seeds from the other; if both have one, documents are the only noise, and the difference may
    be that of two seeds. Where there is one document too, nothing is known of noise: the interval is NaN, p is 1.

    Args:
        first: `[..., seeds, documents]`, of which the mean over documents is the metric of a run.
        second: the same of the other config, on the same documents; it may have another number of seeds.
        draws: of the bootstrap.
    """
    count = first.shape[-1]
    value = first.mean((-2, -1)) - second.mean((-2, -1))
    if count == first.shape[-2] == second.shape[-2] == 1:
        unknown = np.full_like(value, np.nan)
        return Comparison(value, unknown, unknown, np.ones_like(value), unknown, unknown, unknown)
    seed_error, freedom, deviation = _seed_noise(first, second)
    differences = first.mean(-2) - second.mean(-2)
    document_variance = differences.var(-1, ddof=1) / count if count > 1 else np.zeros_like(value)
    counted_twice = _interaction(first, second) / count
    kept = np.maximum(1 - counted_twice / np.where(document_variance > 0, document_variance, 1), 0)
    variances = np.stack([seed_error**2, kept * document_variance])
    total = variances.sum(0)
    parts = (variances**2 / np.stack([freedom, np.full_like(freedom, max(count - 1, 1))])).sum(0)
    together = np.where(parts > 0, total**2 / np.where(parts > 0, parts, 1), max(count - 1, 1))
    deviations = _deviations(differences, np.sqrt(kept), seed_error, together, draws)
    half = np.quantile(np.abs(deviations), 1 - LEVEL, axis=-1)
    # Rounding may not turn a difference of 0 in all documents into one that is not.
    beyond = (np.abs(deviations) >= np.abs(value)[..., None] - 1e-12).sum(-1)
    return Comparison(
        value=value,
        low=value - half,
        high=value + half,
        p=(beyond + 1) / (draws + 1),
        effect=_ratio(value, deviation) * (1 - 3 / (4 * np.where(np.isfinite(freedom), freedom, 1e9) - 1)),
        error=np.sqrt(total),
        freedom=together,
    )


def _deviations(
    differences: np.ndarray, kept: np.ndarray, seed_error: np.ndarray, freedom: np.ndarray, draws: int
) -> np.ndarray:
    """Returns `[..., draws]`, the deviations of a difference from the true one that could have occurred.

    They are those of the mean over bootstrap draws of documents and normal ones of seeds, divided by the error with
    which the variance of both is known, as in Student's t.

    Args:
        differences: `[..., documents]`.
        kept: `[...]`, factor on the deviations of documents.
        seed_error: `[...]`, standard error from seeds.
        freedom: `[...]`, degrees of freedom of the variance of both.
        draws: how many.
    """
    count = differences.shape[-1]
    rng = random_stream(0, "seeds of a comparison")
    # Quantiles in random order: they have less noise than random numbers.
    normal, squares = ((rng.permutation(draws) + 0.5) / draws for _ in range(2))
    # A mean over a bootstrap draw has the variance without Bessel's correction.
    wider = math.sqrt(count / (count - 1)) if count > 1 else 1.0
    means = _document_means(differences - differences.mean(-1, keepdims=True), draws)
    half = freedom[..., None] / 2
    known = np.sqrt(special.gammaincinv(half, squares) / half)
    return (wider * kept[..., None] * means + seed_error[..., None] * special.ndtri(normal)) / known


def _seed_noise(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the standard error of the difference from seeds, its degrees of freedom, and the deviation of a run.

    Each is `[...]`. Without two seeds of either config the error is 0 and the deviation NaN.
    """
    runs = [x.mean(-1) for x in (first, second)]
    counts = [x.shape[-1] for x in runs]
    known = [x.var(-1, ddof=1) for x, n in zip(runs, counts, strict=True) if n > 1]
    if not known:
        zero = np.zeros(first.shape[:-2])
        return zero, zero + np.inf, zero + np.nan
    if len(known) == 1:
        freedom = float(max(counts) - 1)
        variance = known[0]
        return np.sqrt(variance * sum(1 / n for n in counts)), np.full_like(variance, freedom), np.sqrt(variance)
    each = [variance / n for variance, n in zip(known, counts, strict=True)]
    total = each[0] + each[1]
    freedom = _ratio(total**2, sum(x**2 / (n - 1) for x, n in zip(each, counts, strict=True)))
    pooled = sum((n - 1) * variance for variance, n in zip(known, counts, strict=True)) / (sum(counts) - 2)
    return np.sqrt(total), np.where(total > 0, freedom, min(counts) - 1), np.sqrt(pooled)


def _interaction(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the variance in a document's difference of means that is one of single runs on it, `[...]`."""
    sides = [x for x in (first, second) if x.shape[-2] > 1]
    if not sides or first.shape[-1] < 2:
        return np.zeros(first.shape[:-2])

    def residual(x: np.ndarray) -> np.ndarray:
        rest = x - x.mean(-1, keepdims=True) - x.mean(-2, keepdims=True) + x.mean((-2, -1), keepdims=True)
        return (rest**2).sum((-2, -1)) / ((x.shape[-2] - 1) * (x.shape[-1] - 1))

    known = [residual(x) for x in sides]
    found = known if len(known) == 2 else known * 2
    return found[0] / first.shape[-2] + found[1] / second.shape[-2]


def _document_means(centred: np.ndarray, draws: int) -> np.ndarray:
    """Returns `[..., draws]`, the means of bootstrap draws of documents, given `[..., documents]` with mean 0."""
    rng, count = random_stream(0, "documents of a comparison"), centred.shape[-1]
    if count > _RESAMPLED:
        return centred.std(-1)[..., None] / math.sqrt(count) * rng.standard_normal(draws)
    several, found = max(1, _CHUNK // count), []
    for number in (min(several, draws - i) for i in range(0, draws, several)):
        picked = rng.integers(count, size=(number, count))
        counts = np.stack([np.bincount(row, minlength=count) for row in picked])
        found.append(centred @ (counts.T / count))
    return np.concatenate(found, axis=-1)


def holm(p: Sequence[float]) -> list[float]:
    """Returns p-values after Holm's correction (1979) for so many comparisons: below 0.05 for any with error 5 %."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, np.float64)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected.tolist()


class Deviation(NamedTuple):
    """A standard deviation, the ends of its 95 % interval, and its degrees of freedom."""

    value: float
    low: float
    high: float
    freedom: int


def pooled_deviation(groups: Iterable[Sequence[float]]) -> Deviation | None:
    """Returns the standard deviation inside groups of runs that differ in one seed; None: no group has two runs.

    The interval is that of chi-squared, for normal noise.
    """
    kept = [np.asarray(group, np.float64) for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in kept)
    if not freedom:
        return None
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in kept)
    low, high = (math.sqrt(squares / stats.chi2.ppf(q, freedom)) for q in (1 - LEVEL / 2, LEVEL / 2))
    return Deviation(math.sqrt(squares / freedom), low, high, freedom)


def signal_to_noise(arms: Mapping[str, Sequence[float]]) -> float:
    """Returns the largest difference between the means of arms, divided by the standard deviation inside arms.

    Heineman et al. 2025, arXiv:2508.13144, section 2, with seeds in the place of their last checkpoints; the division
    of both by the mean cancels. NaN: there is one arm, or no arm has two runs.
    """
    means, noise = [float(np.mean(values)) for values in arms.values()], pooled_deviation(arms.values())
    if len(means) < 2 or noise is None:
        return math.nan
    return float(_ratio(max(means) - min(means), noise.value))


def detectable(error: float, freedom: float, comparisons: int = 1, power: float = POWER) -> float:
    """Returns the smallest true difference that a two-sided test at 5 % finds with a probability of `power`.

    Args:
        error: standard error of a difference.
        freedom: its degrees of freedom.
        comparisons: number of pairs; the level is divided by it, which is the first step of Holm's correction.
        power: the probability.
    """
    if not error:
        return 0.0
    least = stats.t.ppf(1 - LEVEL / comparisons / 2, freedom)

    # Over quantiles of the estimated error: scipy's noncentral t gives NaN for large differences.
    known = np.sqrt(stats.chi2.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, freedom) / freedom)

    def missing(shift: float) -> float:
        found = stats.norm.cdf(shift - least * known) + stats.norm.cdf(-shift - least * known)
        return float(found.mean()) - power

    return float(error * optimize.brentq(missing, 0.0, 4 * least + 10))


def planned_detectable(
    seeds: int, comparisons: int = 1, *, seed_deviation: float = 1.0, document_error: float = 0.0
) -> float:
    """Returns what a design can detect before it is run, from assumed noise or that of an earlier sweep.

    The probability is a mean over what the runs may say of the noise: with few seeds, what they say varies much.

    Args:
        seeds: of each arm, at least 2.
        comparisons: pairs of arms.
        seed_deviation: standard deviation of a run over seeds; with 1.0 and no `document_error`, the result is in such
            deviations.
        document_error: standard error of a difference from documents alone.
    """
    quantiles = (np.arange(_PLANNED) + 0.5) / _PLANNED
    variances = stats.chi2.ppf(quantiles, seeds - 1) / (seeds - 1) * seed_deviation**2 / seeds
    first, second = variances[:, None], variances[None]
    estimated = first + second + document_error**2
    freedom = estimated**2 / ((first**2 + second**2) / (seeds - 1))
    error = math.sqrt(2 * seed_deviation**2 / seeds + document_error**2)
    least = stats.t.ppf(1 - LEVEL / comparisons / 2, freedom) * np.sqrt(estimated) / error

    def missing(shift: float) -> float:
        return float((stats.norm.cdf(shift - least) + stats.norm.cdf(-shift - least)).mean()) - POWER

    return float(error * optimize.brentq(missing, 0.0, 4 * float(least.max()) + 10))


def _ratio(part: np.ndarray | float, whole: np.ndarray | float) -> np.ndarray:
    """Returns `part / whole`; NaN where `whole` is 0 or NaN."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=(whole != 0) & ~np.isnan(whole))
