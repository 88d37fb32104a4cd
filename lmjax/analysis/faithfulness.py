"""Whether an attribution is about the model: what its best tokens change, and what it says of other weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lmjax.analysis.attribution import AttributionConfig, Replaced, attribute
from lmjax.analysis.subject import Subject
from lmjax.evaluation.intervals import Measurement, of_means
from lmjax.model.parameter_paths import EMBEDDING, Names, layer_of, map_named
from lmjax.streams import random_stream

PyTree = Any

# Shares of the tokens over which comprehensiveness and sufficiency are means (DeYoung et al. 2020, section 4.1).
SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)


class Judged(NamedTuple):
    """What happens when tokens are left out or put in, in the order of their scores.

    The numbers are probabilities if the subject has one, else its own unit.

    Attributes:
        comprehensiveness: the mean fall without the best tokens; the more, the better.
        sufficiency: the mean fall with the best tokens alone; the less, the better.
        deletion: float64 `[free tokens + 1]`, the number without the best 0, 1, 2 ... tokens.
        insertion: the same with these tokens alone.
    """

    comprehensiveness: float
    sufficiency: float
    deletion: np.ndarray
    insertion: np.ndarray


class Chance(NamedTuple):
    """The mean of a figure over random orders, and the ends between which 95 % of them are."""

    mean: float
    low: float
    high: float


def judge(subject: Subject, scores: np.ndarray, config: AttributionConfig | None = None) -> Judged:
    """Returns the judgement of an attribution.

    DeYoung et al. 2020, arXiv:1911.03429, section 4.1; curves of Petsiuk et al. 2018, arXiv:1806.07421, section 4.

    Args:
        subject: the row and the number.
        scores: `[tokens]`, as `Attribution.scores`.
        config: its baseline replaces the tokens that are left out; None: the defaults.
    """
    rows = Replaced(subject, AttributionConfig() if config is None else config)
    return _judge(rows, np.argsort(-scores[subject.free], kind="stable"))


def chance(subject: Subject, config: AttributionConfig | None = None, orders: int = 20) -> dict[str, Chance]:
    """Returns the comprehensiveness and the sufficiency of random orders of the tokens, by name."""
    config = AttributionConfig() if config is None else config
    rows, rng = Replaced(subject, config), random_stream(config.seed, "orders")
    found = [_judge(rows, rng.permutation(len(subject.free))) for _ in range(orders)]
    result = {}
    for name in ("comprehensiveness", "sufficiency"):
        values = np.array([getattr(each, name) for each in found])
        result[name] = Chance(float(values.mean()), *map(float, np.quantile(values, [0.025, 0.975])))
    return result


def ranked(subjects: Sequence[Subject], methods: Sequence[str], config: AttributionConfig | None = None) -> Measurement:
    """Returns the means of comprehensiveness and sufficiency of methods over subjects, as "METHOD comprehensiveness".

    `Measurement.measured` has their intervals, over subjects.
    """
    columns: dict[str, list[float]] = {}
    for subject in subjects:
        for method in methods:
            own = judge(subject, attribute(subject, method, config).scores, config)
            for name in ("comprehensiveness", "sufficiency"):
                columns.setdefault(f"{method} {name}", []).append(getattr(own, name))
    return of_means(columns)


def _judge(rows: Replaced, order: np.ndarray) -> Judged:
    count = len(order)
    places = np.empty(count, np.int64)
    places[order] = np.arange(count)
    steps = np.arange(count + 1)[:, None]
    deletion, insertion = np.split(rows(np.concatenate([places[None] >= steps, places[None] < steps])), 2)
    if rows.subject.probability is not None:
        deletion, insertion = (1 / (1 + np.exp(-x)) for x in (deletion, insertion))
    best = [max(1, math.ceil(share * count)) for share in SHARES]
    return Judged(
        float(np.mean(deletion[0] - deletion[best])),
        float(np.mean(deletion[0] - insertion[best])),
        deletion,
        insertion,
    )


def randomised(subject: Subject, method: str, config: AttributionConfig | None = None) -> list[tuple[str, float]]:
    """Returns Spearman's correlation of an attribution with that of models of which more and more weights are shuffled.

    From the heads down to the inputs, each step shuffles the numbers within each array (Adebayo et al. 2018,
    arXiv:1810.03292, section 3.1, the cascading randomization). A method that does not follow the model keeps a
    correlation near 1.

    Args:
        subject: the row and the number.
        method: a name in `attribution.METHODS`.
        config: settings of the method.
    """
    from scipy.stats import spearmanr

    original = attribute(subject, method, config).scores[subject.free]
    params, found = subject.loaded.params, []
    for name, chosen in _stages(params):
        params = _shuffled(params, chosen, name)
        other = dataclasses.replace(subject, loaded=dataclasses.replace(subject.loaded, params=params))
        scores = attribute(other, method, config).scores[subject.free]
        constant = min(len(set(original)), len(set(scores))) < 2
        found.append((name, math.nan if constant else float(spearmanr(original, scores).statistic)))
    return found


def _stages(params: PyTree) -> list[tuple[str, frozenset[Names]]]:
    """Returns names of groups of parameters from the heads down, and their paths."""
    groups: dict[tuple[int, int], set[Names]] = {}

    def sort(names: Names, leaf: jax.Array) -> None:
        del leaf
        layer, below = layer_of(names), EMBEDDING in names or "inputs" in names
        place = (2, 0) if below else (0, 0) if layer is None else (1, -(layer.number or 0))
        groups.setdefault(place, set()).add(names)

    map_named(sort, params)
    titles = {0: "(the head)", 2: "to the inputs"}
    return [(titles.get(k, f"to layer {-n}"), frozenset(groups[k, n])) for k, n in sorted(groups)]


def _shuffled(params: PyTree, chosen: frozenset[Names], stage: str) -> PyTree:
    """Returns the parameters with the numbers of some arrays in another order."""

    def shuffle(names: Names, leaf: jax.Array) -> jax.Array:
        if names not in chosen:
            return leaf
        values = np.asarray(leaf)
        drawn = random_stream(0, "parameters in another order", stage, *names).permutation(values.reshape(-1))
        return jax.device_put(drawn.reshape(values.shape), leaf.sharding if isinstance(leaf, jax.Array) else None)

    return map_named(shuffle, params)
