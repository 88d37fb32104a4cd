"""WEAT and SEAT: whether vectors of two sets of words or sentences are nearer to one of two sets of attributes.

A file is JSON as published by May et al. (2019): `targ1`, `targ2`, `attr1` and `attr2`, each with `category`, its name,
and `examples`, a list of words or sentences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.audit.findings import Finding, Section
from lmjax.audit.published import files_of, read_json
from lmjax.data.fields import Fields, check_text
from lmjax.errors import DataError
from lmjax.evaluation.intervals import Measured
from lmjax.streams import random_stream

_SETS = ("targ1", "targ2", "attr1", "attr2")
# Up to this many partitions all of them are tried; otherwise so many are drawn.
PARTITIONS = 10_000


class Association(NamedTuple):
    """The effect size of a test, and its one-sided p-value by permutation of the targets."""

    effect: float
    p: float


class Sets(NamedTuple):
    """The names and the texts of the four sets of a test."""

    categories: list[str]
    texts: list[list[str]]


def read_tests(spec: str) -> tuple[list[Sets], list[tuple[str, str]]]:
    """Returns the tests in the files that a path or a glob names; and the files with their fingerprints.

    Raises:
        DataError: a file is no such test.
    """
    files = files_of(spec, "weat")
    return [_read(path) for path, _ in files], files


def associations(
    tests: Sequence[Sets],
    files: Sequence[tuple[str, str]],
    embed: Callable[[list[str]], np.ndarray],
    against: Callable[[list[str]], np.ndarray] | None = None,
) -> Section:
    """Returns the effect sizes and p-values of tests.

    Args:
        tests: the tests.
        files: where they come from.
        embed: from texts to the vectors of the model, `[texts, width]`.
        against: the same of another model; None: there is none.
    """
    findings = []
    for categories, sets in tests:
        found = associate(*_vectors(sets, embed))
        other = None if against is None else Measured(associate(*_vectors(sets, against)).effect)
        name = f"{categories[0]} - {categories[1]}, {categories[2]} - {categories[3]}"
        size = len(sets[0]) + len(sets[1])
        findings.append(Finding(name, Measured(found.effect), size, "0", other, p=found.p))
    note = (
        "Effect size d of the association of two sets of targets with two sets of attributes by the cosine of their "
        "vectors (WEAT, Caliskan et al. 2017; SEAT, May et al. 2019), from -2 to 2, and its one-sided p-value by "
        f"permutation of the targets (all partitions, or {PARTITIONS:,} draws)."
    )
    return Section("Associations of vectors", note, findings, files)


def associate(first: np.ndarray, second: np.ndarray, a: np.ndarray, b: np.ndarray) -> Association:
    """Returns the effect size and the p-value (Caliskan et al. 2017, arXiv:1608.07187, methods).

    Args:
        first: vectors of the first targets, `[targets, width]`.
        second: of the second targets.
        a: of the first attributes.
        b: of the second attributes.
    """
    targets = np.concatenate([first, second]).astype(np.float64)
    own = _cosines(targets, a).mean(axis=1) - _cosines(targets, b).mean(axis=1)
    size, half = len(own), len(first)
    spread = own.std(ddof=1)
    effect = (own[:half].mean() - own[half:].mean()) / spread if spread > 0 else 0.0
    chosen = own[_partitions(size, half)].sum(axis=1)
    # With the sum over all targets fixed, the statistic grows with the sum over the first ones. Rounding may not
    # separate equal sums.
    beyond = int((chosen >= own[:half].sum() - 1e-12).sum())
    every = math.comb(size, half) <= PARTITIONS
    return Association(float(effect), beyond / len(chosen) if every else (beyond + 1) / (len(chosen) + 1))


def _partitions(size: int, half: int) -> np.ndarray:
    """Returns which targets are the first ones in each partition, `[partitions, half]`."""
    if math.comb(size, half) <= PARTITIONS:
        return np.array(list(itertools.combinations(range(size), half)))
    draws = random_stream(0, "association").random((PARTITIONS, size))
    return np.argsort(draws, axis=1)[:, :half]


def _cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    unit = [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in (x, y)]
    return unit[0] @ unit[1].T.astype(np.float64)


def _vectors(sets: Sequence[list[str]], embed: Callable[[list[str]], np.ndarray]) -> list[np.ndarray]:
    found = embed([text for each in sets for text in each])
    return np.split(found, np.cumsum([len(each) for each in sets])[:-1])


def _read(path: str) -> Sets:
    """Returns the names and the texts of the four sets in a file."""
    given, names, sets = read_json(path, "weat"), [], []
    for key in _SETS:
        own = given.get(key)
        examples = own.get("examples") if isinstance(own, Fields) else None
        if not isinstance(examples, list) or len(examples) < 2 or not all(isinstance(x, str) and x for x in examples):
            raise DataError(
                f"--weat={path}: {key}.examples is no list of two or more texts; a test has {', '.join(_SETS)}, each "
                "with category and examples"
            )
        for text in examples:
            check_text(f"--weat={path}", key, text)
        names.append(str(own.get("category", key)))
        sets.append(examples)
    return Sets(names, sets)
