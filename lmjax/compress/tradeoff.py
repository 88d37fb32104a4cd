"""Sizes of compressed models against their quality: which are worth their bytes, and a figure of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmjax.analysis.figures import BLUE, GREY, new_axes, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """A compressed model.

    Attributes:
        size: in megabytes.
        quality: such as its accuracy, or its loss.
        low: the lower end of the quality's interval.
        high: the upper end.
    """

    size: float
    quality: float
    low: float
    high: float


def frontier(points: Mapping[str, Point], *, higher: bool) -> list[str]:
    """Returns the names of the models that no other one beats in size or quality without losing in the other.

    They are in the order of their sizes. Of models that are equal in both, all are among them.

    Args:
        points: by name.
        higher: whether a higher quality is better.
    """
    sign = 1 if higher else -1

    def beats(a: Point, b: Point) -> bool:
        good, better = sign * a.quality >= sign * b.quality, sign * a.quality > sign * b.quality
        return a.size <= b.size and good and (a.size < b.size or better)

    kept = [name for name, point in points.items() if not any(beats(other, point) for other in points.values())]
    return sorted(kept, key=lambda name: points[name].size)


def figure(points: Mapping[str, Point], *, quality: str, higher: bool, title: str = "") -> Figure:
    """Returns a figure of sizes and qualities with their intervals, and a line through the models on the frontier.

    Args:
        points: by name.
        quality: what the quality is.
        higher: whether a higher quality is better.
        title: of the figure.
    """
    best, names = frontier(points, higher=higher), list(points)
    drawn, axes = new_axes(9.0, max(4.5, 0.26 * len(points)))
    for name, point in points.items():
        ends = [[point.quality - point.low], [point.high - point.quality]]
        colour = BLUE if name in best else GREY
        style = {"color": colour, "ecolor": colour, "alpha": 0.9, "capsize": 2, "zorder": 3 + (name in best)}
        axes.errorbar(point.size, point.quality, yerr=ends, fmt="o", **style)
    line = [points[name] for name in best]
    axes.step([p.size for p in line], [p.quality for p in line], where="post", color=BLUE, linewidth=1)
    # Names stand beside the axes, so that they do not cover each other where sizes or qualities are almost equal.
    margin = 0.03 * np.ptp(axes.get_ylim())
    low, high = axes.get_ylim()
    heights = spread([points[name].quality for name in names], (high - low) / max(len(names), 12), low, high)
    right = max(p.size for p in points.values())
    width = right - min(p.size for p in points.values()) or right
    for name, shown, height in zip(names, plain(names), heights, strict=True):
        style = {"color": "black" if name in best else "dimgrey", "fontsize": 8, "va": "center"}
        # From the beginning of a name, so that no line crosses the other names.
        arrow = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "relpos": (0.0, 0.5)}
        at = points[name].size, points[name].quality
        axes.annotate(shown, at, (right + 0.12 * width, height), arrowprops=arrow, **style)
    axes.set(xlabel="MB of parameters in memory", ylabel=quality, ylim=(low - margin, high + margin), title=title)
    axes.set_xlim(min(p.size for p in points.values()) - 0.05 * width, right + 0.45 * width)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return drawn


def spread(places: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Returns places near the given ones that are at least `gap` apart, in the same order, between two ends.

    If there is no room for the gap, they are as far apart as there is room for.

    Args:
        places: of any order.
        gap: the least distance.
        low: the lowest place.
        high: the highest place.
    """
    places = np.asarray(places, float)
    order = np.argsort(places, kind="stable")
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    steps = gap * np.arange(len(places))
    # In units shifted by its steps each place must not be below the one before: the running maximum, kept within ends.
    moved = np.maximum.accumulate(np.clip(places[order] - steps, low, None))
    moved = np.minimum(moved, high - steps[-1]) + steps
    found = np.empty(len(places))
    found[order] = moved
    return found
