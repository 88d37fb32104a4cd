"""Metrics of predicted numbers: squared and absolute error, and the correlations of Pearson and Spearman.

They are scikit-learn's and SciPy's. Those of bootstrap draws are computed here from counts, all draws at once; the
tests check them against the libraries. The correlation with a constant counts as 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from lmjax.errors import DataError
from lmjax.evaluation.intervals import Measurement, check_examples, ratio, required

# Variances that are smaller relative to the squares are rounding errors.
_ROUNDING = 1e-12


def regression(
    gold: Sequence[float] | np.ndarray, predicted: Sequence[float] | np.ndarray, names: Sequence[str] = ()
) -> Measurement:
    """Returns `mse`, `mae`, `pearson` and `spearman`, and with several targets their means under these names.

    Args:
        gold: numbers, `[examples]` or `[examples, targets]`.
        predicted: likewise.
        names: of the targets, behind those of the metrics ("mse width"); they are needed if there are several.

    Raises:
        DataError: no examples, not the same shapes, or a number that is not finite.
    """
    check_examples(gold, predicted)
    gold, predicted = np.asarray(gold, np.float64), np.asarray(predicted, np.float64)
    if gold.shape != predicted.shape or gold.ndim > 2:
        raise DataError(f"gold values {gold.shape} and predictions {predicted.shape}; give arrays of one shape")
    gold, predicted = gold.reshape(len(gold), -1), predicted.reshape(len(gold), -1)
    for what, each in (("gold value", gold), ("prediction", predicted)):
        if (bad := ~np.isfinite(each).all(axis=1)).any():
            raise DataError(f"the {what} of example {bad.argmax()} is {each[bad.argmax()]}; give finite numbers")
    targets = gold.shape[1]
    if len(names) != targets and (names or targets > 1):
        raise DataError(f"{targets} targets and the names {list(names)}; give a name for each")
    pairs, kinds = np.unique(np.stack([gold, predicted], axis=-1), axis=0, return_inverse=True)
    columns = pairs.transpose(1, 2, 0)
    draws = [_of_counts(*column) for column in columns]

    def of_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
        return _named([draw(counts) for draw in draws], names)

    values = _named([_values(*pair) for pair in zip(gold.T, predicted.T, strict=True)], names)
    return Measurement({name: float(x) for name, x in values.items()}, kinds.reshape(-1), of_counts)


def _named(targets: Sequence[dict], names: Sequence[str]) -> dict:
    """Returns the means of metrics over targets, and if there are several, those of each target."""
    found = {metric: np.mean([each[metric] for each in targets], axis=0) for metric in targets[0]}
    if len(targets) > 1:
        found |= {f"{m} {name}": x for name, each in zip(names, targets, strict=True) for m, x in each.items()}
    return found


def _values(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Returns the libraries' metrics of one target."""
    errors, stats = required("sklearn.metrics"), required("scipy.stats")
    found = {"mse": errors.mean_squared_error(gold, predicted), "mae": errors.mean_absolute_error(gold, predicted)}
    constant = not (np.ptp(gold) and np.ptp(predicted))
    with warnings.catch_warnings():
        # SciPy warns of numbers that are nearly constant.
        warnings.simplefilter("ignore")
        for name, of in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
            found[name] = 0.0 if constant else np.nan_to_num(of(gold, predicted).statistic)
    return found


def _of_counts(gold: np.ndarray, predicted: np.ndarray) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns a function from the counts of pairs to the metrics of one target; the pairs are `[kinds]` each."""
    apart = gold - predicted
    means = np.mean(gold), np.mean(predicted)
    ranks = [_ranks(values) for values in (gold, predicted)]

    def of_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
        total = counts.sum(axis=1)
        centred = [values[None] - mean for values, mean in zip((gold, predicted), means, strict=True)]
        # Ranks of a draw of n examples have the mean (n + 1) / 2.
        ranked = [rank(counts) - (total[:, None] + 1) / 2 for rank in ranks]
        return {
            "mse": counts @ apart**2 / total,
            "mae": counts @ np.abs(apart) / total,
            "pearson": _correlation(counts, *centred),
            "spearman": _correlation(counts, *ranked),
        }

    return of_counts


def _ranks(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from counts `[draws, kinds]` to the rank of each kind, equal ones sharing their mean rank."""
    order = np.argsort(values, kind="stable")
    _, starts, group = np.unique(values[order], return_index=True, return_inverse=True)
    back = np.empty_like(group)
    back[order] = group

    def ranks(counts: np.ndarray) -> np.ndarray:
        sizes = np.add.reduceat(counts[:, order], starts, axis=1)
        return (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, back]

    return ranks


def _correlation(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns Pearson's correlation `[draws]` of numbers `[draws or 1, kinds]` that occur `counts` times."""
    total = counts.sum(axis=1)
    sums = [np.einsum("dk,dk->d", counts, np.broadcast_to(of, counts.shape)) for of in (x, y, x * x, y * y, x * y)]
    moments = [sums[2] - sums[0] ** 2 / total, sums[3] - sums[1] ** 2 / total, sums[4] - sums[0] * sums[1] / total]
    for i in range(2):
        moments[i] = np.where(moments[i] > _ROUNDING * sums[2 + i], moments[i], 0.0)
    return ratio(moments[2], np.sqrt(moments[0] * moments[1]))
