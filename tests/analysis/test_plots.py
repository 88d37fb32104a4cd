"""Curves show what metrics.jsonl holds."""

import json

import numpy as np
import pytest

from lmjax.analysis.plots import plot_metric

pytest.importorskip("matplotlib").use("agg")


def test_a_line_for_every_run_and_metric(tmp_path):
    for name, offset in (("a", 0.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        lines = [{"step": s, "train/loss": 3.0 - s + offset} for s in (1, 2)] + [{"step": 2, "eval/x/loss": 9.0}]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    figure = plot_metric({"a": tmp_path / "a", "b": tmp_path / "b"}, ("train/loss", "eval/x/loss"))
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    assert set(lines) == {"a train/loss", "a eval/x/loss", "b train/loss", "b eval/x/loss"}
    np.testing.assert_array_equal(lines["b train/loss"], [[1, 3.0], [2, 2.0]])


def test_the_names_of_many_runs_cover_no_curve(tmp_path):
    runs = {}
    for i in range(6):
        runs[f"norm_position=pre-seed={i}"] = tmp_path / str(i)
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "metrics.jsonl").write_text(json.dumps({"step": 1, "train/loss": 3.0 + i}) + "\n")
    figure = plot_metric(runs)
    figure.draw_without_rendering()
    (axes,), (legend,) = figure.axes, figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(runs)
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
