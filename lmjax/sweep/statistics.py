"""What a report says of arms: means with intervals, differences of pairs, noise by source, and what can be detected."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmjax.errors import DataError
from lmjax.evaluation.seeds import (
    LEVEL,
    Deviation,
    Interval,
    compare_runs,
    detectable,
    holm,
    mean_interval,
    planned_detectable,
    pooled_deviation,
    signal_to_noise,
)
from lmjax.schema import shown
from lmjax.sweep.arms import (
    CONTROL,
    SHARED,
    Arm,
    RunResult,
    arm_key,
    check_pairs,
    headline,
    is_control,
    is_falling,
    is_seed,
)

# Measures that are known for each document, by the last part of a metric's name.
_BY_DOCUMENT = ("loss", "bits_per_byte", "accuracy")
# Documents that are scored where the run was evaluated give its metrics to 1e-6; another device may round otherwise.
_SAME = 1e-3


class Pair(NamedTuple):
    """The difference between two arms.

    Attributes:
        first: number of the first arm.
        second: number of the second.
        value: the mean of the first less that of the second.
        low: lower end of the 95 % interval.
        high: upper end.
        effect: the difference in standard deviations of a single run; NaN: no arm has two seeds.
        p: p-value of no difference.
        corrected: p-value after Holm's correction over all pairs.
        detectable: the smallest true difference that this pair would have shown with a probability of 80 %.
        control: the control that shows the difference too; empty: none does.
    """

    first: int
    second: int
    value: float
    low: float
    high: float
    effect: float
    p: float
    corrected: float
    detectable: float
    control: str

    @property
    def real(self) -> bool:
        """Returns whether it is one after Holm's correction, by the noise of seeds too, and no control shows it."""
        return self.corrected < LEVEL and not self.control and not math.isnan(self.effect)


@dataclasses.dataclass(frozen=True)
class Noise:
    """The deviation of the headline metric that one source of randomness causes.

    Attributes:
        source: the field of its seed, or "documents".
        deviation: between runs that differ in it alone; of documents, the standard error of a run's metric.
    """

    source: str
    deviation: Deviation


@dataclasses.dataclass(frozen=True)
class Analysis:
    """All that a report says.

    Attributes:
        arms: the arms.
        metric: the metric that they are compared by.
        falling: whether lower values of it are better.
        best: by arm, the mean of the best value of each run over its evaluations; None: no run ended well.
        pairs: the differences of all pairs of arms that are no controls.
        documents: number of documents in the comparisons; 0: they are of runs alone.
        unpaired: why documents are not paired; empty: they are.
        noise: by source.
        table: by metric that all runs have: its signal-to-noise, the noise inside arms, and its mean in each arm.
        planned: what the design could detect, in standard deviations of a run; NaN: with one seed it is not known.
    """

    arms: tuple[Arm, ...]
    metric: str
    falling: bool
    best: tuple[Interval | None, ...]
    pairs: tuple[Pair, ...]
    documents: int
    unpaired: str
    noise: tuple[Noise, ...]
    table: dict[str, tuple[float, Deviation | None, tuple[Interval | None, ...]]]
    planned: float

    def interval(self, arm: int) -> Interval | None:
        """Returns the mean of the metric in an arm, with its interval."""
        return self.table[self.metric][2][arm]


def analyse(arms: Sequence[Arm], metric: str | None = None) -> Analysis:
    """Returns the statistics of arms.

    Args:
        arms: from `arms_of`.
        metric: what they are compared by; None: `headline` chooses.

    Raises:
        FlagError: the runs have no metric in common.
    """
    metric = headline(arms, metric)
    runs = [run for arm in arms for run in arm.runs]
    samples, unpaired = _samples(arms, metric)
    falling = is_falling(metric)
    shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    seeds = min(len(arm.runs) for arm in arms if arm.runs)
    pairs = _pairs(arms, samples)
    by_document = not unpaired
    return Analysis(
        arms=tuple(arms),
        metric=metric,
        falling=falling,
        best=tuple(_best(arm, metric, falling) for arm in arms),
        pairs=pairs,
        documents=next(iter(samples.values())).shape[1] if by_document else 0,
        unpaired=unpaired,
        noise=_noise(runs, metric, samples if by_document else {}),
        table={name: _row(arms, name) for name in shared if name == metric or not _is_alias(name, shared)},
        planned=planned_detectable(seeds, max(len(pairs), 1)) if seeds > 1 else math.nan,
    )


def design(fields: Sequence[Mapping[str, Any]]) -> str:
    """Returns what a sweep can detect before it is run, given the fields of its runs; empty for a single arm."""
    sizes = collections.Counter(arm_key(own) for own in fields if not is_control(own))
    pairs, seeds = math.comb(len(sizes), 2), min(sizes.values(), default=0)
    if not pairs:
        return ""
    if seeds < 2:
        return (
            "what it can detect: arms with one seed are compared on the same held-out documents, but their differences "
            "may be those of seeds; seed=0:3 gives each arm three"
        )
    least = planned_detectable(seeds, pairs)
    return (
        f"what it can detect: {len(sizes)} arms, {seeds} seeds each: differences of at least {least:.2g} standard "
        f"deviations of a run over seeds, with 80 % power after Holm's correction for {pairs} pair{'s' * (pairs > 1)}"
    )


def _samples(arms: Sequence[Arm], metric: str) -> tuple[dict[int, np.ndarray], str]:
    """Returns `[seeds, documents]` of each arm with runs, whose means are the metric, and why documents are not paired.

    Where they are not, there is one column: the metric of each run.
    """
    _, evaluated, *names, measure = metric.split("/")
    runs = [run for arm in arms for run in arm.runs]
    name = names[0] if names else None
    known = len(names) < 2 and measure in _BY_DOCUMENT
    why = check_pairs(runs, evaluated) if known else f"{metric} is not a sum over documents"
    with_runs = [(i, arm) for i, arm in enumerate(arms) if arm.runs]
    if not why:
        documents = {id(run): run.documents[evaluated] for run in runs}
        among = np.any([d.weights.any(0) for d in documents.values()], axis=0)
        try:
            shares = {
                i: np.stack([documents[id(run)].shares(measure, among, name) for run in arm.runs])
                for i, arm in with_runs
            }
        except DataError as e:
            why = str(e)
        else:
            if not (why := _other_measure(with_runs, shares, metric)):
                return shares, ""
    return {i: np.array(arm.values(metric))[:, None] for i, arm in with_runs}, why


def _other_measure(arms: Sequence[tuple[int, Arm]], shares: Mapping[int, np.ndarray], metric: str) -> str:
    """Returns how the documents of a run measure something else than its metric; empty: they measure the same.

    The accuracy of a task that writes labels as text is that of labels, and its documents have that of tokens.
    """
    for i, arm in arms:
        for value, own in zip(arm.values(metric), shares[i].mean(1), strict=True):
            if abs(value - own) > _SAME * abs(value):
                return f"their {metric.rpartition('/')[2]} in {arm.label} is {own:.4g}, and {metric} is {value:.4g}"
    return ""


def _pairs(arms: Sequence[Arm], samples: dict[int, np.ndarray]) -> tuple[Pair, ...]:
    """Returns the differences of all pairs of arms that are no controls; Holm's correction is over these."""
    plain = [i for i in samples if not arms[i].control]
    numbers = list(itertools.combinations(plain, 2))
    found = {pair: _compared(samples, pair) for pair in numbers}
    corrected = holm([float(found[pair].p) for pair in numbers])
    twins = _twins(arms, samples)
    pairs = []
    for pair, p in zip(numbers, corrected, strict=True):
        each, shown_too = found[pair], ""
        for control, twin in twins.items():
            if pair[0] in twin and pair[1] in twin and p < LEVEL:
                other = _compared(samples, (twin[pair[0]], twin[pair[1]]))
                if other.p < LEVEL and other.value * each.value > 0:
                    shown_too = control
        error, freedom = float(each.error), float(each.freedom)
        least = math.nan if math.isnan(error) else detectable(error, freedom, len(numbers))
        numbers_of = (each.value, each.low, each.high, each.effect, each.p)
        pairs.append(Pair(*pair, *map(float, numbers_of), p, least, shown_too))
    return tuple(pairs)


def _compared(samples: dict[int, np.ndarray], pair: tuple[int, int]) -> Any:
    return compare_runs(samples[pair[0]], samples[pair[1]])


def _twins(arms: Sequence[Arm], samples: dict[int, np.ndarray]) -> dict[str, dict[int, int]]:
    """Returns by control: for the number of an arm, that of the arm which differs from it in the control alone."""

    def key(arm: Arm) -> str:
        return json.dumps({name: shown(value) for name, value in arm.fields.items() if name != CONTROL}, sort_keys=True)

    plain = {key(arms[i]): i for i in samples if not arms[i].control}
    found: dict[str, dict[int, int]] = {}
    for i in samples:
        if arms[i].control and key(arms[i]) in plain:
            found.setdefault(arms[i].control, {})[plain[key(arms[i])]] = i
    return found


def _best(arm: Arm, metric: str, falling: bool) -> Interval | None:
    """Returns the mean of the best value of each run over its evaluations; None: the arm has no run."""
    found = []
    for run in arm.runs:
        values = [line[metric] for line in run.lines if not math.isnan(line.get(metric, math.nan))]
        found.append((min if falling else max)(values or [run.metrics[metric]]))
    return mean_interval(found) if found else None


def _is_alias(name: str, shared: Sequence[str]) -> bool:
    """Returns whether a metric is one that `with_shared` added beside the metric that it stands for."""
    _, evaluated, *rest = name.split("/")
    own = [other for other in shared if other.startswith(f"eval/{evaluated}/") and other.split("/")[3:] == rest]
    return len(rest) == 1 and rest[0] in SHARED and bool(own)


def _row(arms: Sequence[Arm], metric: str) -> tuple[float, Deviation | None, tuple[Interval | None, ...]]:
    values = {str(i): arm.values(metric) for i, arm in enumerate(arms) if arm.runs}
    intervals = tuple(mean_interval(arm.values(metric)) if arm.runs else None for arm in arms)
    return signal_to_noise(values), pooled_deviation(values.values()), intervals


def _noise(runs: Sequence[RunResult], metric: str, samples: dict[int, np.ndarray]) -> tuple[Noise, ...]:
    """Returns the noise of each seed that was varied, between runs that are equal in all other fields."""
    found = []
    for field in dict.fromkeys(name for run in runs for name in run.fields if is_seed(name)):
        groups: dict[str, list[float]] = {}
        for run in runs:
            others = {name: shown(value) for name, value in run.fields.items() if name != field}
            groups.setdefault(json.dumps(others, sort_keys=True), []).append(run.metrics[metric])
        if (deviation := pooled_deviation(groups.values())) is not None:
            found.append(Noise(field, deviation))
    if samples and (count := next(iter(samples.values())).shape[1]) > 1:
        variances = np.concatenate([x.var(1, ddof=1) for x in samples.values()]) / count
        error = math.sqrt(float(variances.mean()))
        found.append(Noise("documents", Deviation(error, math.nan, math.nan, count - 1)))
    return tuple(found)
