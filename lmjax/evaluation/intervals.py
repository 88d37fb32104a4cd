"""Bootstrap intervals of metrics over examples, and paired comparisons of two systems on the same examples.

Every metric is kept as a `Measurement`: its value over all examples, and a function from counts of the examples to the
metric. A draw of the bootstrap is a set of counts, so the draws are computed together from arrays. An interval is that
of the percentile bootstrap (Efron and Tibshirani 1993, section 13.3).
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmjax.errors import DataError, FlagError
from lmjax.streams import random_stream

RESAMPLES = 1000
# Ends of a 95 % interval, in percent.
BOUNDS = (2.5, 97.5)
# Draws are made in chunks of so many counts.
_CHUNK = 2**22


class Measured(float):
    """A metric, which can be used as any float, with its interval.

    Attributes:
        low: lower end of the 95 % interval; None: it has none.
        high: upper end.
        signature: the library and the settings that gave it, for metrics that depend on them; otherwise empty.
    """

    low: float | None
    high: float | None
    signature: str

    def __new__(cls, value: float, low: float | None = None, high: float | None = None, signature: str = ""):
        """Returns the metric with its interval."""
        new = super().__new__(cls, value)
        new.low, new.high, new.signature = low, high, signature
        return new


class Difference(NamedTuple):
    """The difference of a metric between two systems, the ends of its 95 % interval, and its two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


class McNemar(NamedTuple):
    """The examples that only the first system has right, those that only the second has right, and the p-value."""

    first: int
    second: int
    p: float


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The metrics of one system, and how they follow from counts of the examples.

    Attributes:
        values: the metrics over all examples, by name.
        kinds: the kind of each example, `[examples]`, numbers from 0 that all occur. Examples of one kind have the same
            effect on every metric.
        of_counts: a function from the counts of the kinds, float `[draws, kinds]`, to each metric, `[draws]`.
        signatures: of metrics that have one, by name.
    """

    values: Mapping[str, float]
    kinds: np.ndarray
    of_counts: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    signatures: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def measured(self, resamples: int = RESAMPLES) -> dict[str, Measured]:
        """Returns the metrics with their intervals; without intervals if `resamples` is 0, or of a single example."""
        found = {name: Measured(x, signature=self.signatures.get(name, "")) for name, x in self.values.items()}
        if not resamples or len(self.kinds) == 1:
            return found
        drawn = [self.of_counts(counts) for counts in _draws(np.bincount(self.kinds), resamples)]
        for name, x in found.items():
            low, high = np.percentile(np.concatenate([each[name] for each in drawn]), BOUNDS)
            found[name] = Measured(x, float(low), float(high), x.signature)
        return found


def of_sums(
    rows: np.ndarray,
    metrics: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    values: Mapping[str, float] | None = None,
) -> Measurement:
    """Returns a measurement whose metrics depend on sums over the examples alone.

    Args:
        rows: what each example adds to the sums, `[examples, sums]`.
        metrics: a function from sums `[draws, sums]` to each metric `[draws]`.
        values: the metrics over all examples, where a library gives them; None: those of the sums over all examples.
    """
    if values is None:
        total = np.array([[math.fsum(column) for column in np.asarray(rows).T]])
        values = {name: float(x[0]) for name, x in metrics(total).items()}
    table, kinds = np.unique(np.asarray(rows, np.float64), axis=0, return_inverse=True)
    return Measurement(values, kinds.reshape(-1), lambda counts: metrics(counts @ table))


def of_means(columns: Mapping[str, Sequence[float] | np.ndarray]) -> Measurement:
    """Returns a measurement whose metrics are means over the examples, from the values of each example."""
    rows = np.stack([np.asarray(column, np.float64) for column in columns.values()], axis=1)
    check_examples(rows)

    def means(sums: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(columns, (sums[:, 1:] / sums[:, :1]).T, strict=True))

    return of_sums(np.insert(rows, 0, 1.0, axis=1), means)


def joined(*parts: Measurement) -> Measurement:
    """Returns the metrics of several measurements of the same examples, in the same order, as one."""
    kinds, draw = _together(parts)
    return Measurement(
        {name: x for part in parts for name, x in part.values.items()},
        kinds,
        lambda counts: {name: x for metrics in draw(counts) for name, x in metrics.items()},
        {name: text for part in parts for name, text in part.signatures.items()},
    )


def compare(first: Measurement, second: Measurement, resamples: int = RESAMPLES) -> dict[str, Difference]:
    """Returns the difference `first - second` of every metric, by the paired bootstrap.

    Both systems are measured on the same draws of examples. The p-value is the share of draws whose difference is at
    least as far from the mean difference of the draws as the difference is from 0 (Noreen 1989; Riezler and Maxwell
    2005, section 4).

    Args:
        first: the metrics of one system.
        second: those of the other, on the same examples in the same order; metrics of one of them alone are left out.
        resamples: draws of the bootstrap, at least 1.

    Raises:
        DataError: the two have not the same number of examples.
    """
    kinds, draw = _together((first, second))
    drawn = [draw(counts) for counts in _draws(np.bincount(kinds), resamples)]
    found = {}
    for name in (name for name in first.values if name in second.values):
        value = first.values[name] - second.values[name]
        draws = np.concatenate([one[name] - other[name] for one, other in drawn])
        low, high = np.percentile(draws, BOUNDS)
        # Rounding may not turn a difference that is the same in all draws, such as 0, into one that is not.
        beyond = np.abs(draws - draws.mean()) >= abs(value) - 1e-12
        found[name] = Difference(value, float(low), float(high), float((beyond.sum() + 1) / (resamples + 1)))
    return found


def mcnemar(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> McNemar:
    """Returns McNemar's exact test (1947) of whether two systems are right equally often.

    Args:
        first: whether the first system is right, `[examples]`.
        second: whether the second one is, on the same examples.
    """
    check_examples(first, second)
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    only, other = int((first & ~second).sum()), int((second & ~first).sum())
    p = required("scipy.stats").binomtest(only, only + other).pvalue if only + other else 1.0
    return McNemar(only, other, float(p))


def check_examples(*columns: Sequence[Any] | np.ndarray) -> None:
    """Raises DataError unless there is an example, and the same number of them in each column."""
    sizes = [len(column) for column in columns]
    if len(set(sizes)) > 1:
        raise DataError(f"{' and '.join(map(str, sizes))} examples; give one prediction for each gold value")
    if not sizes[0]:
        raise DataError("0 examples, whose metrics are not defined; give at least one")


def required(module: str, extra: str = "evaluate") -> Any:
    """Returns a module of a package that belongs to an extra; raises FlagError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise FlagError(f'{module.partition(".")[0]} is not installed: pip install "lmjax[{extra}]"') from e


def ratio(part: np.ndarray | float, whole: np.ndarray | float) -> np.ndarray:
    """Returns `part / whole`; 0 where `whole` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def _draws(counts: np.ndarray, resamples: int) -> Iterator[np.ndarray]:
    """Yields float `[draws, kinds]`: how often each kind is drawn; together `resamples` draws of all examples."""
    rng = random_stream(0, "bootstrap")
    total, several = int(counts.sum()), max(1, _CHUNK // len(counts))
    # The kind of each example. To draw examples is faster than to draw from a multinomial distribution of many kinds.
    kinds = np.repeat(np.arange(len(counts)), counts) if 4 * len(counts) > total else None
    for number in (min(several, resamples - i) for i in range(0, resamples, several)):
        if kinds is None:
            yield rng.multinomial(total, counts / total, size=number).astype(np.float64)
        else:
            picked = kinds[rng.integers(total, size=(number, total))]
            yield np.stack([np.bincount(row, minlength=len(counts)) for row in picked]).astype(np.float64)


def _together(parts: Sequence[Measurement]) -> tuple[np.ndarray, Callable[[np.ndarray], list[Mapping[str, Any]]]]:
    """Returns the joint kind of each example, and a function from their counts to the metrics of each part."""
    check_examples(*(part.kinds for part in parts))
    table, kinds = np.unique(np.stack([part.kinds for part in parts], axis=1), axis=0, return_inverse=True)
    orders = [np.argsort(column, kind="stable") for column in table.T]
    starts = [np.searchsorted(column[order], np.unique(column)) for column, order in zip(table.T, orders, strict=True)]

    def draw(counts: np.ndarray) -> list[Mapping[str, Any]]:
        """Sums the counts of the joint kinds that are one kind of a part."""
        own = [np.add.reduceat(counts[:, of], at, axis=1) for of, at in zip(orders, starts, strict=True)]
        return [part.of_counts(each) for part, each in zip(parts, own, strict=True)]

    return kinds.reshape(-1), draw
