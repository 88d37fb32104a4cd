"""Charts of a report as SVG text: curves with bands, and differences with intervals.

They are written here, without matplotlib, so that the same numbers give the same bytes, and so that the colours follow
the light or dark scheme of the page that holds them (`STYLE`).
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Colours that people with colour blindness can tell apart (Okabe and Ito 2008), darker on light and lighter on dark.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#56a0d3", "#7a4a2a", "#555555")
_DARK = ("#56b4e9", "#ff9b4a", "#2fd0a0", "#e08ac8", "#f0e442", "#8fc7ff", "#c9a27e", "#bbbbbb")
COLOURS = len(_LIGHT)
# The colours of texts, background, rules and headers, in a light and in a dark scheme.
LIGHT_SCHEME = "--ink:#1b1f24;--paper:#fff;--rule:#8c959f;--soft:#f3f5f7"
DARK_SCHEME = "--ink:#e6e8eb;--paper:#15181c;--rule:#6b747e;--soft:#20252b"
STYLE = (
    "".join(f".c{i}{{--c:{colour}}}" for i, colour in enumerate(_LIGHT))
    + "svg text{fill:var(--ink);font:12px system-ui,sans-serif}svg .axis{stroke:var(--rule);stroke-width:1}"
    ".line{fill:none;stroke:var(--c);stroke-width:2}.band{fill:var(--c);opacity:.16;stroke:none}"
    ".dot{fill:var(--c)}.whisker{stroke:var(--c);stroke-width:2}svg .grey{stroke:var(--rule);stroke-dasharray:4 3}"
    "@media(prefers-color-scheme:dark){" + "".join(f".c{i}{{--c:{colour}}}" for i, colour in enumerate(_DARK)) + "}"
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT = 720, 320, 64, 24, 28
_LONGEST = 60


class Curve(NamedTuple):
    """A line with a band: steps, means, and the ends of the intervals; NaN where there is none."""

    label: str
    steps: Sequence[float]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


class Dot(NamedTuple):
    """A point, and the number of its colour."""

    x: float
    y: float
    colour: int


class Bar(NamedTuple):
    """A value with its interval, and the number of its colour."""

    label: str
    value: float
    low: float
    high: float
    colour: int


def alone(chart: str) -> str:
    """Returns a chart as the text of a file, for a paper or slides; its colours follow the scheme of the viewer."""
    light = f"svg{{{LIGHT_SCHEME};background:var(--paper)}}"
    dark = f"@media(prefers-color-scheme:dark){{svg{{{DARK_SCHEME}}}}}"
    start = '<svg xmlns="http://www.w3.org/2000/svg" '
    head, end, rest = chart.replace("<svg ", start, 1).partition(">")
    return f"{head}{end}<style>{light}{dark}{STYLE}</style>{rest}\n"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def curves(given: Sequence[Curve], x_label: str, y_label: str, dots: Sequence[Dot] = (), *, log: bool = False) -> str:
    """Returns a chart of curves, and of points beside them; the highest values of long curves are cut off.

    Intervals wider than the chart are left out.

    Args:
        given: the curves.
        x_label: below the axis.
        y_label: above the axis.
        dots: the points.
        log: whether the axis is logarithmic, with a mark at each step of the curves; all steps must be positive.
    """
    marks = None
    if log:
        marks = {math.log2(x): f"{x:.3g}" for x in sorted({x for curve in given for x in curve.steps})}
        given = [curve._replace(steps=[math.log2(x) for x in curve.steps]) for curve in given]
        dots = [dot._replace(x=math.log2(dot.x)) for dot in dots]
    points = [(x, y) for curve in given for x, y in zip(curve.steps, curve.means, strict=True) if math.isfinite(y)]
    points += [(dot.x, dot.y) for dot in dots]
    if not points:
        return ""
    rights, heights = sorted(x for x, _ in points), sorted(y for _, y in points)
    # The loss of the first steps would leave no room for the differences of the last ones.
    cut = max(1, len(heights) // 20) if len(heights) > 20 else 0
    bottom, top = heights[0], heights[-1 - cut]
    bottom, top = _wider(bottom, top)
    left, right = rights[0], rights[-1] if rights[-1] > rights[0] else rights[0] + 1
    place = _Places((left, right), (bottom, top), _HEIGHT)
    parts = [*_axes(place, x_label, y_label, marks)]
    for i, curve in enumerate(given):
        kept = [k for k, y in enumerate(curve.means) if math.isfinite(y)]
        # An interval that is wider than the chart, as two runs often give, would cover all others.
        banded = [k for k in kept if math.isfinite(curve.lows[k]) and curve.highs[k] - curve.lows[k] <= top - bottom]
        around = [(curve.steps[k], curve.highs[k]) for k in banded] + [
            (curve.steps[k], curve.lows[k]) for k in reversed(banded)
        ]
        if len(banded) > 1:
            parts.append(f'<polygon class="band c{i % COLOURS}" points="{place.path(around)}"/>')
        line = place.path([(curve.steps[k], curve.means[k]) for k in kept])
        dashes = f' stroke-dasharray="{2 + 2 * (i // COLOURS)} 3"' if i >= COLOURS else ""
        parts.append(f'<polyline class="line c{i % COLOURS}" points="{line}"{dashes}/>')
    for dot in dots:
        parts.append(
            f'<circle class="dot c{dot.colour % COLOURS}" cx="{place.x(dot.x)}" cy="{place.y(dot.y)}" r="3.5"/>'
        )
    legend = [_legend(i, curve.label, _HEIGHT + 20 * i) for i, curve in enumerate(given)]
    return _svg([*parts, *legend], _HEIGHT + 20 * len(given) + 8)


def bars(given: Sequence[Bar], x_label: str, zero: bool = False) -> str:
    """Returns a chart of values with intervals, one below the other.

    Args:
        given: the values.
        x_label: below the axis.
        zero: whether a line marks 0.
    """
    ends = [x for bar in given for x in (bar.value, bar.low, bar.high) if math.isfinite(x)] + [0.0] * zero
    if not ends:
        return ""
    height = _TOP + 44 + 40 * len(given)
    place = _Places(_wider(min(ends), max(ends)), (0.0, 1.0), height)
    parts = [*_axes(place, x_label, None)]
    if zero:
        x = place.x(0.0)
        parts.append(f'<line class="grey" x1="{x}" x2="{x}" y1="{_TOP}" y2="{height - 44}"/>')
    for i, bar in enumerate(given):
        y = _TOP + 40 * i + 22
        parts.append(f'<text x="{_LEFT}" y="{y - 8}">{_short(bar.label)}</text>')
        if math.isfinite(bar.low):
            ends_of = f'x1="{place.x(bar.low)}" x2="{place.x(bar.high)}"'
            parts.append(f'<line class="whisker c{bar.colour % COLOURS}" {ends_of} y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot c{bar.colour % COLOURS}" cx="{place.x(bar.value)}" cy="{y}" r="4"/>')
    return _svg(parts, height + 8)


class _Places(NamedTuple):
    """Where numbers stand in a chart of a height in pixels."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    height: int

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        bottom, top = self.height - 44, _TOP
        # What lies above or below the chart is drawn at its edge.
        return round(min(bottom, max(top, bottom - (value - low) / (high - low) * (bottom - top))), 1)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)


def _axes(place: _Places, x_label: str, y_label: str | None, marks: Mapping[float, str] | None = None) -> list[str]:
    """Returns the axes; `y_label` None: there are rows in place of a second axis; `marks` None: round numbers."""
    bottom = place.height - 44
    marks = {value: f"{value:g}" for value in ticks(*place.x_range)} if marks is None else marks
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    for value, text in marks.items():
        x = place.x(value)
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    if y_label is not None:
        for value in ticks(*place.y_range):
            y = place.y(value)
            parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" opacity=".4"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>')
        parts.append(f'<text x="4" y="14">{html.escape(y_label)}</text>')
    middle = (_LEFT + _WIDTH) // 2
    return [*parts, f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">{html.escape(x_label)}</text>']


def _legend(number: int, label: str, y: int) -> str:
    line = f'<line class="line c{number % COLOURS}" x1="{_LEFT}" x2="{_LEFT + 24}" y1="{y + 8}" y2="{y + 8}"/>'
    return f'{line}<text x="{_LEFT + 32}" y="{y + 12}">{_short(label)}</text>'


def _short(label: str) -> str:
    return html.escape(label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…")


def _wider(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _svg(parts: Sequence[str], height: int) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(parts)}</svg>'
