"""Sizes against qualities: the models that no other beats, and names that do not cover each other."""

import numpy as np
import pytest

from lmjax.compress.tradeoff import Point, figure, frontier, spread

POINTS = {
    "whole": Point(90, 0.90, 0.88, 0.92),
    "zeros": Point(90, 0.85, 0.83, 0.87),
    "int8": Point(59, 0.90, 0.88, 0.92),
    "int4": Point(54, 0.87, 0.85, 0.89),
    "awq": Point(54, 0.88, 0.86, 0.90),
    "layers": Point(70, 0.80, 0.78, 0.82),
}


@pytest.mark.parametrize(("higher", "expected"), [(True, ["awq", "int8"]), (False, ["int4", "layers"])])
def test_the_frontier_has_what_no_other_beats(higher, expected):
    assert frontier(POINTS, higher=higher) == expected
    assert frontier({"a": POINTS["int8"], "b": POINTS["int8"]}, higher=higher) == ["a", "b"]


def test_names_are_apart_and_in_order():
    rng = np.random.default_rng(0)
    for places in (rng.random(15), np.zeros(15), np.ones(15), np.repeat([0.1, 0.9], 8)):
        found = spread(places, 0.05, 0.0, 1.0)
        order = np.argsort(places, kind="stable")
        assert (np.diff(found[order]) >= 0.05 - 1e-9).all()
        assert found.min() >= -1e-9
        assert found.max() <= 1 + 1e-9
    np.testing.assert_allclose(spread([0.5, 0.1], 0.05, 0.0, 1.0), [0.5, 0.1])


def test_the_figure_names_every_model():
    pytest.importorskip("matplotlib")
    axes = figure(POINTS, quality="accuracy", higher=True).axes[0]
    assert [text.get_text() for text in axes.texts] == list(POINTS)
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert min(np.diff(heights)) > 0.005
