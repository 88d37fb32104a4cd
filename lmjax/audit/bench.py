"""A test of bias by likelihoods: texts that a model of any family scores, and the numbers that follow."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.audit.findings import Section, findings_of
from lmjax.evaluation.intervals import Measurement, of_sums, ratio
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.score.score import Score, rolling, score
from lmjax.inference.score.texts import Item, ScoreConfig
from lmjax.inference.score.tokens import by_token

# A group with fewer examples is not listed by itself.
LEAST = 10


class Measures(NamedTuple):
    """The metrics of a bench for one model, and the number of examples of each."""

    measurement: Measurement
    counts: Mapping[str, int]


class Bench(NamedTuple):
    """A test that was read from a file.

    Attributes:
        title: its name.
        note: what is computed, and its source.
        names: the file and line of each item, for messages.
        items: what the model scores; with an empty context a whole text.
        measure: from the scores of the items to the metrics.
        neutral: the values of a model without bias, by metric.
        files: that were read, with their fingerprints.
        shared: whether two items after each other are a pair that is scored by the tokens that both have.
    """

    title: str
    note: str
    names: Sequence[str]
    items: Sequence[Item]
    measure: Callable[[Sequence[Score]], Measures]
    neutral: Mapping[str, str]
    files: Sequence[tuple[str, str]]
    shared: bool = False


def section(bench: Bench, loaded: LoadedModel, against: LoadedModel | None, config: ScoreConfig) -> Section:
    """Returns the results of one model, or of two on the same examples.

    Args:
        bench: the test.
        loaded: the model.
        against: the other one; None: there is none.
        config: of scoring.
    """
    first = bench.measure(scores(bench, loaded, config))
    second = None if against is None else bench.measure(scores(bench, against, config)).measurement
    found = findings_of(first.measurement, second, first.counts, bench.neutral)
    return Section(bench.title, f"{bench.note} {kind_of(loaded)}", found, bench.files)


def kind_of(loaded: LoadedModel) -> str:
    """Returns a sentence that says what the likelihood of a family is."""
    if loaded.config.family.causal:
        return "Scores are log-likelihoods in nats."
    if loaded.unmasks:
        return "Scores are lower bounds of log-likelihoods, estimated from random masks."
    return "Scores are pseudo-log-likelihoods (Salazar et al. 2020): each token is masked once."


def scores(bench: Bench, loaded: LoadedModel, config: ScoreConfig) -> list[Score]:
    """Returns the score of every item; whole texts that are longer than the model's rows are scored in windows."""
    if bench.shared:
        return _of_shared(bench, loaded, config)
    whole = [i for i, item in enumerate(bench.items) if not item.context]
    after = [i for i, item in enumerate(bench.items) if item.context]
    found: dict[int, Score] = {}
    if whole:
        texts, names = [bench.items[i].continuation for i in whole], [bench.names[i] for i in whole]
        found |= zip(whole, rolling(loaded, texts, config, names), strict=True)
    if after:
        items, names = [bench.items[i] for i in after], [bench.names[i] for i in after]
        found |= zip(after, score(loaded, items, config, names), strict=True)
    return [found[i] for i in range(len(bench.items))]


def _of_shared(bench: Bench, loaded: LoadedModel, config: ScoreConfig) -> list[Score]:
    """Returns the score of every item, by the tokens that it has in common with the other one of its pair."""
    found = by_token(loaded, [item.continuation for item in bench.items], config, bench.names)
    scores = []
    for pair in zip(found[::2], found[1::2], strict=True):
        blocks = difflib.SequenceMatcher(None, *(each.ids for each in pair), autojunk=False).get_matching_blocks()
        for side, each in enumerate(pair):
            places = [block[side] + i for block in blocks for i in range(block.size)]
            # Rounded as by Nangia et al., because of equal likelihoods rounding errors would choose one.
            total = round(float(each.log_likelihoods[places].sum()), 3)
            scores.append(Score(total, len(places), False, 0))
    return scores


def means(columns: Mapping[str, Sequence[float]], groups: Sequence[str] = ()) -> Measures:
    """Returns the means of columns over all examples, and over each group with enough of them.

    Args:
        columns: the values of each example by metric.
        groups: the group of each example; empty: there are none.
    """
    size = len(next(iter(columns.values())))
    parts = {"": np.ones(size, bool)}
    of = np.array(groups)
    for name in sorted(set(groups)):
        if (of == name).sum() >= LEAST and len(set(groups)) > 1:
            parts[name] = of == name
    names = [(c, p) for c in columns for p in parts]
    rows = [parts[p] * np.asarray(columns[c], np.float64) for c, p in names] + [parts[p] for _, p in names]
    labels = [f"{c}: {p}" if p else c for c, p in names]

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(labels, ratio(sums[:, : len(names)], sums[:, len(names) :]).T, strict=True))

    counts = {label: int(parts[p].sum()) for label, (_, p) in zip(labels, names, strict=True)}
    return Measures(of_sums(np.stack(rows, axis=1).astype(np.float64), metrics), counts)


def preferred(first: Sequence[float], second: Sequence[float]) -> np.ndarray:
    """Returns 1 where the first number is larger, 0 where the second is, and 1/2 where they are equal."""
    return (np.sign(np.asarray(first) - np.asarray(second)) + 1) / 2


def chunks(found: Sequence[Score], sizes: Sequence[int]) -> Iterator[Sequence[Score]]:
    """Yields the scores of each example, of which each has so many items."""
    start = 0
    for size in sizes:
        yield found[start : start + size]
        start += size
