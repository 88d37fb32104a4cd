"""Parts of a report that show a metric along a field with numbers, such as the learning rate.

There is one line for each setting of the other fields, and a table of where each line has its best value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lmjax.evaluation.seeds import Interval
from lmjax.schema import shown
from lmjax.sweep.arms import Arm, short_names
from lmjax.sweep.charts import Curve, curves
from lmjax.sweep.render import Section
from lmjax.sweep.statistics import Analysis

# A line of fewer points is no more than the table of results says.
_POINTS = 3
# From this ratio of the largest to the smallest number on, the axis is logarithmic.
_WIDE = 8.0
# So many lines can be told apart.
_LINES = 12


def along_fields(found: Analysis) -> list[Section]:
    """Returns a section for each field along which some arms differ in that field alone, at three points or more."""
    names = dict.fromkeys(name for arm in found.arms for name in arm.fields)
    return [section for name in names if (section := _along(found, name))]


def _along(found: Analysis, name: str) -> Section | None:
    short = short_names([each for arm in found.arms for each in arm.fields])
    lines: dict[str, dict[float, Interval]] = {}
    for i, arm in enumerate(found.arms):
        interval = found.interval(i)
        if interval is not None and _is_number(arm.fields.get(name)):
            lines.setdefault(_others(arm, name, short), {})[float(arm.fields[name])] = interval
    lines = {label: line for label, line in lines.items() if len(line) >= _POINTS}
    if not lines:
        return None
    best = min if found.falling else max
    rows, drawn = [], []
    for label, line in lines.items():
        points = sorted(line.items())
        at, top = best(points, key=lambda point: point[1].value)
        edge = " (at the edge)" if at in (points[0][0], points[-1][0]) else ""
        half = top.high - top.value
        rows.append((label, f"{at:g}{edge}", f"{top.value:.4g}" + ("" if math.isnan(half) else f" ± {half:.2g}")))
        xs, means = zip(*points, strict=True)
        drawn.append(Curve(label, xs, *zip(*((m.value, m.low, m.high) for m in means), strict=True)))
    ends = [x for curve in drawn for x in (curve.steps[0], curve.steps[-1])]
    wide = min(ends) > 0 and max(ends) / min(ends) >= _WIDE
    text = (
        f"{found.metric} along {name}, a line for each setting of the other fields: means over seeds, with 95 %"
        " intervals as bands where they fit. A best value at the edge may lie beyond it.",
    )
    header = ("line", f"best {short[name]}", found.metric.removeprefix("eval/"))
    return Section(f"Along {short[name]}", text, (header, *rows), curves(drawn[:_LINES], name, found.metric, log=wide))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _others(arm: Arm, name: str, short: Mapping[str, str]) -> str:
    return ", ".join(f"{short[n]}={shown(value)}" for n, value in arm.fields.items() if n != name) or "all arms"
