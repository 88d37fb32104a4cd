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
