"""Spaces of points, and the combinators that make them; a point is what one run of a sweep is given.

    space = product(param("optimizer.learning_rate", [1e-4, 3e-4]), seeds(3))

A point maps fields of the config by dotted path, or names of flags of `lmjax train` (`objective`, `preset`,
`init_from`, `data` ...), to values. A space is an ordered, immutable collection of different points. Imports no jax.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lmjax.errors import FlagError
from lmjax.schema import shown
from lmjax.streams import random_stream

Point = Mapping[str, Any]


def point_text(point: Point) -> str:
    """Returns a point as text, such as `seed=1, optimizer.learning_rate=0.001`."""
    return ", ".join(f"{key}={shown(value)}" for key, value in point.items()) or "(nothing)"


@dataclasses.dataclass(frozen=True)
class Space:
    """An ordered collection of points.

    Attributes:
        points: the points; no two are equal.
    """

    points: tuple[Point, ...]

    def __post_init__(self):
        object.__setattr__(self, "points", tuple(MappingProxyType(dict(point)) for point in self.points))
        if not self.points:
            raise FlagError("a space without points: give each field at least one value")
        seen = set()
        for point in self.points:
            key = frozenset((name, shown(value)) for name, value in point.items())
            if key in seen:
                raise FlagError(f"{point_text(point)}: is given twice; give each value and each point once")
            seen.add(key)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)


def param(field: str, values: Iterable[Any]) -> Space:
    """Returns a space with one point for each value of a field or flag.

    Raises:
        FlagError: `field` is not a name, or there is no value, or one of them is given twice.
    """
    if not isinstance(field, str) or not field.strip():
        raise FlagError(f"param({field!r}, ...): give the name of a field, such as optimizer.learning_rate")
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise FlagError(f"param({field!r}, {values!r}): give a list of values")
    if not (values := tuple(values)):
        raise FlagError(f"{field}: has no values; give at least one")
    return Space(tuple({field: value} for value in values))


@dataclasses.dataclass(frozen=True)
class Between:
    """The numbers from `low` to `high`, from which a search chooses; integers if both are.

    Attributes:
        low: the least one.
        high: the greatest one.
        log: whether numbers are chosen by their logarithms.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self):
        odd = [x for x in (self.low, self.high) if isinstance(x, bool) or not isinstance(x, int | float)]
        if odd or not -math.inf < self.low < self.high < math.inf or (self.log and self.low <= 0):
            raise FlagError(f"{self}: give LOW..HIGH, numbers with LOW below HIGH; with :log both above 0")

    def __str__(self) -> str:
        return f"{self.low}..{self.high}" + (":log" if self.log else "")


def between(field: str, low: float, high: float, *, log: bool = False) -> Space:
    """Returns a space whose point has a range of numbers, from which a search chooses (`Sweep.search`).

    Args:
        field: a field or flag.
        low: the least number.
        high: the greatest number.
        log: whether numbers are chosen by their logarithms, as is usual for learning rates.
    """
    return param(field, [Between(low, high, log)])


def product(*spaces: Space) -> Space:
    """Returns every combination of one point of each space; the last space varies fastest."""
    return Space(tuple(_joined(points) for points in itertools.product(*spaces)))


def zipped(*spaces: Space) -> Space:
    """Returns the first points of all spaces together, then the second ones, and so on.

    Raises:
        FlagError: the spaces have different lengths.
    """
    if len({len(space) for space in spaces}) > 1:
        lengths = ", ".join(f"{'/'.join(space.points[0])} has {len(space)}" for space in spaces)
        raise FlagError(f"zipped: all spaces need the same number of points; {lengths}")
    return Space(tuple(_joined(points) for points in zip(*spaces, strict=True)))


def chain(*spaces: Space) -> Space:
    """Returns the points of all spaces, one space after the other."""
    return Space(tuple(itertools.chain.from_iterable(spaces)))


def seeds(
    count: int | None = None,
    *,
    init: int | None = None,
    order: int | None = None,
    dropout: int | None = None,
    subset: int | None = None,
) -> Space:
    """Returns a space of seeds from 0 on.

    Args:
        count: number of seeds of the whole run.
        init: number of seeds of the initial parameters alone; what else is random stays as it is.
        order: the same for the order of the training rows.
        dropout: the same for dropout.
        subset: the same for the share of the training documents that `data.subset` takes.
    """
    parts = {"init": init, "order": order, "dropout": dropout, "subset": subset}
    counts = {"seed": count} | {f"seeds.{name}": number for name, number in parts.items()}
    given = {field: number for field, number in counts.items() if number is not None}
    if not given or any(not isinstance(number, int) or number < 1 for number in given.values()):
        raise FlagError(f"seeds({given or ''}): give numbers of seeds from 1 on, as seeds(3) or seeds(init=3)")
    return product(*(param(field, range(number)) for field, number in given.items()))


def subsample(space: Space, count: int, seed: int = 0) -> Space:
    """Returns `count` points of a space, chosen at random without repetition, in their order in the space.

    Raises:
        FlagError: the space has fewer points.
    """
    if not 1 <= count <= len(space):
        raise FlagError(f"subsample(count={count}): the space has {len(space)} points; take 1 to {len(space)}")
    chosen = random_stream(seed, "points of a sweep").permutation(len(space))[:count]
    return Space(tuple(space.points[i] for i in sorted(chosen)))


def _joined(points: Sequence[Point]) -> Point:
    """Returns several points as one; raises FlagError if two of them set the same field."""
    joined: dict[str, Any] = {}
    for point in points:
        if both := sorted(joined.keys() & point.keys()):
            raise FlagError(f"{both[0]}: two spaces that are combined set it; let one of them do so")
        joined |= point
    return joined


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a file in experiments/ablations/ returns from `get_sweep()`.

    Attributes:
        space: the points; each is one run.
        base: what all runs are given: fields and flags, as in a point.
        metric: the metric that the report compares, such as `eval/heldout/loss`; None: the loss of the first set.
        control: a negative control that is added for every point; None: no controls.
        match: what all arms spend the same amount of; None: each has the steps that its config says.
        search: how a search chooses points of the space, which then may have ranges; None: every point is a run.
        trials: the number of runs of a search.
        rungs: steps at which the worse half of the runs that train together stops (successive halving: Jamieson and
            Talwalkar 2016, arXiv:1502.07943, section 3).
    """

    space: Space
    base: Point = dataclasses.field(default_factory=dict)
    metric: str | None = None
    control: str | None = None
    match: str | None = None
    rungs: tuple[int, ...] = ()
    search: str | None = None
    trials: int | None = None

    def __post_init__(self):
        if list(self.rungs) != sorted({step for step in self.rungs if isinstance(step, int) and step > 0}):
            raise FlagError(f"rungs={self.rungs}: give steps from 1 on, in rising order")
        if not isinstance(self.space, Space):
            raise FlagError(f"Sweep({type(self.space).__name__}): the first argument is a Space, as param() returns")
