"""Figures of a classifier's results show its numbers, and stay readable with many classes and long names."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from lmjax.analysis.figures import bars, confusion_matrix, pixels, precision_recall_curves, reliability_diagram
from lmjax.evaluation.classes import confusion, reliability, single_label
from lmjax.evaluation.intervals import Measured

pytest.importorskip("matplotlib")


def results(classes, count=400):
    rng = np.random.default_rng(classes)
    gold = rng.integers(classes, size=count)
    scores = rng.dirichlet(np.ones(classes), size=count) + np.eye(classes)[gold] * rng.random((count, 1))
    return gold, scores / scores.sum(axis=1, keepdims=True)


def names(classes):
    """Some are long and differ in their middle alone."""
    return [f"kind {i}" if i % 3 else f"a long name of a class with number {i} among others" for i in range(classes)]


def is_whole(figure):
    """Whether all that is drawn lies inside the figure."""
    pixels(figure)
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return min(box.x0, box.y0) > -0.01 and box.x1 < width + 0.01 and box.y1 < height + 0.01


@pytest.mark.parametrize("classes", [2, 7, 50])
def test_no_text_is_cut_and_labels_do_not_overlap(classes):
    gold, scores = results(classes)
    labels, predicted = names(classes), scores.argmax(axis=1)
    figures = [
        confusion_matrix(confusion(gold, predicted, classes), labels),
        reliability_diagram(reliability(gold, scores)),
        precision_recall_curves(gold, scores, labels),
        bars(single_label(gold, predicted, labels).measured(20), labels),
    ]
    for figure in figures:
        assert is_whole(figure)
    matrix = figures[0].axes[0]
    boxes = sorted((label.get_window_extent() for label in matrix.get_xticklabels()), key=lambda box: box.x0)
    assert all(one.x1 <= other.x0 + 1 for one, other in itertools.pairwise(boxes))
    # The cells are nearly square.
    assert 0.8 < matrix.get_window_extent().width / matrix.get_window_extent().height < 1.25
    for figure in (figures[0], figures[3]):
        axes = figure.axes[0]
        ticks = [label.get_text() for label in axes.get_yticklabels()]
        assert len(set(ticks)) == classes
        assert max(map(len, ticks)) < 36
        boxes = sorted((label.get_window_extent() for label in axes.get_yticklabels()), key=lambda box: box.y0)
        assert all(one.y1 <= other.y0 + 1 for one, other in itertools.pairwise(boxes))


def test_a_confusion_matrix_shows_counts_and_shares():
    axes = confusion_matrix(np.array([[8, 2, 0], [12345, 0, 0], [0, 0, 0]]), ("a", "b", "c")).axes[0]
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {((0, 0), "8"), ((1, 0), "2"), ((0, 1), "12k")}
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2, 0], [1, 0, 0], [0, 0, 0]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "gold")


def test_a_reliability_diagram_shows_its_bins():
    bins = reliability([0, 1, 1, 1], np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]), bins=5)
    upper, lower = reliability_diagram(bins).axes
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in upper.patches] == [
        (pytest.approx(0.5), 1.0), (pytest.approx(0.9), 0.5)]  # fmt: skip
    assert [bar.get_height() for bar in lower.patches] == [0, 0, 2, 0, 2]
    assert "0.400" in upper.get_title()


def test_curves_name_the_labels_that_are_hardest_to_find():
    gold, scores = results(12)
    scores[gold == 5, 5] = 0.0
    axes = precision_recall_curves(gold, scores, names(12)).axes[0]
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(shown) == 9
    assert shown[0].startswith("kind 5 0.0")
    assert shown[-1] == "4 others, all higher"
    averages = [float(text.split()[-1]) for text in shown[:-1]]
    assert averages == sorted(averages)
    several = np.eye(12)[gold]
    several[:, 3] = 0
    assert len(precision_recall_curves(several, scores, names(12)).axes[0].lines) == 11 + 1  # one is for the legend


def test_a_curve_is_scikit_learns():
    from sklearn.metrics import precision_recall_curve

    gold, scores = results(2)
    line = precision_recall_curves(gold, scores, ("a", "b")).axes[0].lines
    curves = {each.get_label().split()[0]: each.get_xydata() for each in line}
    precision, recall, _ = precision_recall_curve(gold, scores[:, 1])
    np.testing.assert_allclose(curves["b"], np.stack([recall, precision], axis=1))


def test_bars_show_values_with_their_intervals():
    metrics = {"f1 a": Measured(0.5, 0.4, 0.7), "f1 b": Measured(0.75, 0.7, 0.8), "f1 c": 0.25, "f1 macro": 0.5}
    axes = bars(metrics, ("a", "b", "c")).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.25, 0.5, 0.75]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "a", "b"]
    lines = [tuple(line.get_xdata()) for line in axes.lines]
    assert lines == [(), (0.4, 0.7), (0.7, 0.8), (0.5, 0.5)]
    assert [text.get_text() for text in axes.texts] == ["0.25", "0.50", "0.75"]


def test_a_dollar_sign_begins_no_formula():
    axes = bars({"f1 1$ to 2$": 0.5, "f1 x_1": 0.4}, ("1$ to 2$", "x_1")).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x_1", r"1\$ to 2\$"]


def test_pixels_are_those_of_the_file(tmp_path):
    from matplotlib.image import imread

    figure = confusion_matrix(np.eye(2, dtype=int), ("a", "b"))
    image = pixels(figure, dpi=50)
    assert (image.dtype, image.shape[2]) == (np.uint8, 3)
    assert image.shape[1] == pytest.approx(figure.get_size_inches()[0] * 50, abs=1)
    assert image.min() < 100 < image.max()
    figure.savefig(tmp_path / "x.png", dpi=50)
    # The layout of a second drawing may differ by a part of a pixel.
    assert np.abs(imread(tmp_path / "x.png")[..., :3] * 255 - image).mean() < 1


def test_no_state_of_pyplot_is_touched():
    """Figures that pyplot knows stay in memory, and it may open a window."""
    code = """
import sys, numpy as np
from lmjax.analysis.figures import confusion_matrix, pixels
pixels(confusion_matrix(np.eye(2, dtype=int), "ab"))
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
