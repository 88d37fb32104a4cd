"""Curves of runs from their workdirs; needs matplotlib (`pip install 'lmjax[viz]'`)."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lmjax.analysis.figures import new_axes, plain
from lmjax.training.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The most curves whose names stand beside them.
_INSIDE = 4


def plot_metric(runs: Mapping[str, str | pathlib.Path], names: tuple[str, ...] = ("train/loss",)) -> Figure:
    """Returns a figure of metrics over steps, one line per run and metric.

    Args:
        runs: workdirs by label.
        names: names of metrics in `metrics.jsonl`, such as "train/loss" or "eval/heldout/loss"; a run without a metric
            has no line for it.
    """
    found = {
        f"{label} {name}".strip() if len(names) > 1 or not label else label: (name, *read_metrics(workdir, name))
        for label, workdir in runs.items()
        for name in names
    }
    # Long names of many runs stand below the curves, where they cover none.
    below = len(found) > _INSIDE
    figure, axes = new_axes(8, 4 + 0.22 * len(found) * below)
    for label, (name, steps, values) in found.items():
        if steps:
            axes.plot(steps, values, label=plain([label])[0], marker="o" if name.startswith("eval/") else None)
    axes.set(xlabel="step", ylabel=names[0] if len(names) == 1 else "nats")
    axes.grid(alpha=0.3)
    if below:
        figure.legend(loc="outside lower left", fontsize=9, frameon=False)
    elif axes.lines:
        axes.legend()
    return figure
