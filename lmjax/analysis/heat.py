"""Figures of attributions and of grids over layers: blue raises a number, orange lowers it.

`lmjax explain` shows the same as HTML (`lmjax.analysis.page`); these are for notebooks and papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmjax.analysis.attribution import Attribution
from lmjax.analysis.figures import new_axes, plain
from lmjax.analysis.subject import Subject
from lmjax.evaluation.intervals import required

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Inches of a figure, of a line of text, and of a character in it.
_WIDTH, _LINE, _CHARACTER = 9.0, 0.34, 0.095
# Okabe and Ito 2008: colours that people with colour blindness can tell apart.
_DOWN, _NONE, _UP = "#d55e00", "#ffffff", "#0072b2"


def text_map(subject: Subject, found: Attribution) -> Figure:
    """Returns a figure of the tokens of a subject, each coloured by its attribution; special tokens are grey."""
    most = max(float(np.abs(found.scores).max()), 1e-12)
    colours, lines, x = _colours(), [[]], 0.0
    for token, score in zip(subject.tokens, found.scores, strict=True):
        shown = token.text.replace("▁", " ")
        width = _CHARACTER * len(shown)
        if x and x + width > _WIDTH:
            lines.append([])
            x = 0.0
        lines[-1].append((x, width, shown, float(score), token.kept))
        x += width
    figure, axes = new_axes(_WIDTH, _LINE * len(lines) + 0.5)
    for row, line in enumerate(lines):
        for x, width, shown, score, kept in line:
            colour = colours(0.5 + 0.375 * score / most)
            box = required("matplotlib.patches", "viz").Rectangle((x, -row - 0.42), width, 0.84, color=colour)
            axes.add_patch(box)
            (text,) = plain([shown])
            axes.text(x + width / 2, -row, text, ha="center", va="center", family="monospace", fontsize=9,
                      color="#808080" if kept else "k")  # fmt: skip
    axes.set(xlim=(0, _WIDTH), ylim=(-len(lines) + 0.4, 0.6))
    axes.set_title(plain([f"{found.method}: {subject.name}"])[0], fontsize=10)
    axes.set_axis_off()
    return figure


def grid_map(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str = "", most: float | None = None
) -> Figure:
    """Returns a figure of a grid, such as the effects of `causal.patching` or `causal.ablation`.

    Args:
        values: `[rows, columns]`.
        rows: their names, such as layers.
        columns: their names, such as tokens or heads.
        title: of the figure.
        most: the number with the full colour, such as 1 for shares, so that figures can be compared; None: the largest.
    """
    most = max(float(np.nanmax(np.abs(values))), 1e-12) if most is None else most
    figure, axes = new_axes(max(3.0, 1.6 + 0.3 * len(columns)), max(2.0, 1.2 + 0.3 * len(rows)))
    image = axes.imshow(values, cmap=_colours(), vmin=-most, vmax=most, aspect="auto")
    upright = max(map(len, columns), default=0) > 3
    axes.set_xticks(range(len(columns)), plain(columns), rotation=90 * upright, fontsize=8)
    axes.set_yticks(range(len(rows)), plain(rows), fontsize=8)
    axes.set_title(plain([title])[0], fontsize=10)
    bar = figure.colorbar(image, ax=axes, fraction=0.05)
    if not np.nanmin(values) < 0:
        bar.ax.set_ylim(0.0, most)
    return figure


def _colours() -> Colormap:
    """Returns the colours from the least to the most."""
    colors = required("matplotlib.colors", "viz")
    return colors.LinearSegmentedColormap.from_list("down_up", [_DOWN, _NONE, _UP])
