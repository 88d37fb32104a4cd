"""Figures of a classifier's results, for files and notebooks; needs matplotlib (`pip install 'lmjax[viz]'`).

Figures are made without pyplot, so that no display, backend or list of open figures is involved. `figure.savefig(path)`
writes one, and `pixels` gives the image for TensorBoard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmjax.evaluation.classes import Reliability
from lmjax.evaluation.intervals import Measured, required

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LONGEST = 28
# Curves with a colour and a name of their own; there are so many colours.
_NAMED = 8
BLUE, GREY, RED = "#3b6fb6", "#b0b0b0", "#c44e52"


def confusion_matrix(counts: np.ndarray, labels: Sequence[str]) -> Figure:
    """Returns a figure of a confusion matrix: numbers of examples, coloured by their share of the gold class.

    Args:
        counts: gold classes in rows, predicted ones in columns, `[classes, classes]`.
        labels: their names.
    """
    size, names, places = max(3.0, 0.34 * len(labels)), _short(labels), range(len(labels))
    longest = max(map(len, names))
    upright = len(labels) > 4 or longest > 10
    figure, axes = new_axes(size + 1.6 + 0.08 * longest, size + 0.8 + 0.08 * longest * upright)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(places, names, rotation=90 * upright)
    axes.set_yticks(places, names)
    axes.set(xlabel="predicted", ylabel="gold")
    cell = 72 * size / len(labels)
    for (i, j), count in np.ndenumerate(counts):
        if count:
            text = _count(int(count))
            font = min(11.0, 0.42 * cell, 1.5 * cell / len(text))
            axes.text(j, i, text, ha="center", va="center", fontsize=font, color="w" if shares[i, j] > 0.55 else "k")
    figure.colorbar(image, ax=axes, label="share of the gold class", fraction=0.05, shrink=0.9)
    return figure


def reliability_diagram(bins: Reliability) -> Figure:
    """Returns a figure of the accuracy of each bin of confidence, and below it the examples of each bin.

    The accuracy of a calibrated model lies on the diagonal; the distance to it, weighted by the examples, is the
    expected calibration error, which is in the title.
    """
    figure = new_figure(5, 5.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 1 / len(bins.examples)
    places, there = (np.arange(len(bins.examples)) + 0.5) * width, bins.examples > 0
    upper.bar(places[there], bins.accuracy[there], width, color=BLUE, edgecolor="w", label="accuracy")
    upper.plot(bins.confidence[there], bins.confidence[there], "o", color=RED, markersize=4, label="mean confidence")
    upper.plot([0, 1], [0, 1], "--", color="k", linewidth=1)
    error = np.abs(bins.accuracy - bins.confidence) @ bins.examples / max(bins.examples.sum(), 1)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy", title=f"expected calibration error {error:.3f}")
    upper.legend(loc="upper left")
    lower.bar(places, bins.examples, width, color=GREY, edgecolor="w")
    lower.set(xlabel="confidence", ylabel="examples")
    return figure


def precision_recall_curves(gold: np.ndarray, scores: np.ndarray, labels: Sequence[str]) -> Figure:
    """Returns a figure of precision over recall, a curve for each label against all others, by scikit-learn.

    The legend gives average precisions. If there are many labels, those with the lowest have colours and names, and the
    others are grey. Labels without gold examples have no curve.

    Args:
        gold: numbers of the labels, `[examples]`, or whether each example has each label, `[examples, labels]`.
        scores: such as probabilities, `[examples, labels]`.
        labels: their names.
    """
    metrics = required("sklearn.metrics")
    gold, scores = np.asarray(gold), np.asarray(scores)
    has = np.eye(len(labels))[gold] if gold.ndim == 1 else gold
    there = [i for i in range(len(labels)) if has[:, i].any()]
    average = {i: metrics.average_precision_score(has[:, i], scores[:, i]) for i in there}
    worst = sorted(there, key=lambda i: average[i])[:_NAMED]
    figure, axes = new_axes(7.5, 4.5)
    names = _short(labels)
    for i in [*(i for i in there if i not in worst), *worst]:
        precision, recall, _ = metrics.precision_recall_curve(has[:, i], scores[:, i])
        style = {"label": f"{names[i]} {average[i]:.3f}"} if i in worst else {"color": GREY, "linewidth": 0.7}
        axes.step(recall, precision, where="post", **style)
    if len(there) > len(worst):
        axes.plot([], [], color=GREY, linewidth=0.7, label=f"{len(there) - len(worst)} others, all higher")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(alpha=0.3)
    if there:
        axes.legend(title="average precision", loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure


def bars(metrics: Mapping[str, float], labels: Sequence[str], kind: str = "f1") -> Figure:
    """Returns a figure of a metric of each label, the highest first, with its interval where it has one.

    Args:
        metrics: by name, such as "f1 positive"; if there is a macro average ("f1 macro"), it is a line.
        labels: their names.
        kind: of the metric: precision, recall or f1.
    """
    values = [metrics[f"{kind} {label}"] for label in labels]
    order = np.argsort(values, kind="stable")
    figure, axes = new_axes(6.5, 1.3 + 0.26 * len(labels))
    axes.barh(range(len(order)), np.take(values, order), color=BLUE, height=0.75)
    for place, value in enumerate(values[i] for i in order):
        ends = (value.low, value.high) if isinstance(value, Measured) and value.low is not None else ()
        axes.plot(ends, [place] * len(ends), "|-", color="k", linewidth=1.2)
        axes.text(1.02, place, f"{value:.2f}", va="center", fontsize=9, transform=axes.get_yaxis_transform())
    if (macro := metrics.get(f"{kind} macro")) is not None:
        axes.axvline(macro, linestyle="--", color=RED, linewidth=1, label=f"macro {macro:.3f}")
        figure.legend(loc="outside upper right", frameon=False)
    names = _short(labels)
    axes.set_yticks(range(len(order)), [names[i] for i in order])
    axes.set(xlim=(0, 1), ylim=(-0.6, len(order) - 0.4), xlabel=f"{kind}, with 95 % intervals")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return figure


def pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    """Returns a figure as an image, uint8 `[height, width, 3]`."""
    canvas = required("matplotlib.backends.backend_agg", "viz").FigureCanvasAgg(figure)
    before, figure.dpi = figure.dpi, dpi
    canvas.draw()
    figure.dpi = before
    return np.array(canvas.buffer_rgba())[..., :3]


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Returns a new figure of a size in inches, and its axes."""
    figure = new_figure(width, height)
    return figure, figure.subplots()


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of a size in inches."""
    return required("matplotlib.figure", "viz").Figure(figsize=(width, height), layout="constrained")


def _short(labels: Sequence[str]) -> list[str]:
    """Returns the labels, long ones without their middle; those that are then equal get their places, from 0."""
    lines, half = [" ".join(label.split()) for label in labels], (_LONGEST - 1) // 2
    short = [line if len(line) <= _LONGEST else f"{line[:half]}…{line[-half:]}" for line in lines]
    several = [f"{lines[i][: _LONGEST - 5]}… {i}" if short.count(x) > 1 else x for i, x in enumerate(short)]
    return plain(several)


def plain(texts: Sequence[str]) -> list[str]:
    """Returns texts as matplotlib shows them unchanged: a pair of dollar signs would begin a formula."""
    return [text.replace("$", r"\$") for text in texts]


def _count(number: int) -> str:
    """Returns a number with at most four characters below ten million."""
    for size, unit in ((1_000_000, "M"), (10_000, "k")):
        if number >= size:
            return f"{number / (1000 if unit == 'k' else size):.0f}{unit}"
    return str(number)
