"""Curves of runs from their workdirs; needs matplotlib (`pip install 'lmjax[viz]'`)."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lmjax.training.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_metric(runs: Mapping[str, str | pathlib.Path], names: tuple[str, ...] = ("train/loss",)) -> Figure:
    """Returns a figure of metrics over steps, one line per run and metric.

    Args:
        runs: workdirs by label.
        names: names of metrics in `metrics.jsonl`, such as "train/loss" or "eval/heldout/loss"; a run without a metric
            has no line for it.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    for label, workdir in runs.items():
        for name in names:
            steps, values = read_metrics(workdir, name)
            if steps:
                marker = "o" if name.startswith("eval/") else None
                axes.plot(steps, values, label=f"{label} {name}", marker=marker)
    axes.set_xlabel("step")
    axes.set_ylabel(names[0] if len(names) == 1 else "nats")
    axes.grid(alpha=0.3)
    axes.legend()
    plt.close(figure)
    return figure
