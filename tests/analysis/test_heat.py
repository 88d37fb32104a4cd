"""Figures of attributions and grids have the colours of their numbers."""

import numpy as np
import pytest

from lmjax.analysis.attribution import Attribution
from lmjax.analysis.figures import pixels
from lmjax.analysis.heat import grid_map, text_map
from lmjax.analysis.subject import next_token
from tests.inference.scoring import tiny

pytest.importorskip("matplotlib")


def test_a_token_that_raises_the_number_is_blue_and_one_that_lowers_it_orange():
    subject = next_token(tiny("decoder"), "The old king goes")
    scores = np.zeros(len(subject.tokens))
    scores[1], scores[2] = 2.0, -2.0
    figure = text_map(subject, Attribution("integrated", scores, 0.0, 0.0, None, 1))
    red, _, blue = np.array([box.get_facecolor()[:3] for box in figure.axes[0].patches]).T
    assert blue[1] > red[1]
    assert red[2] > blue[2]
    assert red[0] == pytest.approx(blue[0], abs=0.01)
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == [token.text.replace("▁", " ") for token in subject.tokens]
    assert pixels(figure).shape[2] == 3


def test_a_grid_names_its_rows_and_is_even_around_zero():
    values = np.array([[1.0, -3.0], [0.0, 2.0]])
    axes = grid_map(values, ["layer 0", "layer 1"], ["$a$", "b"]).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), values)
    assert axes.images[0].get_clim() == (-3.0, 3.0)
    assert [label.get_text() for label in axes.get_xticklabels()] == [r"\$a\$", "b"]
    compared = grid_map(values / 6, ["layer 0", "layer 1"], ["a", "b"], most=1.0).axes[0]
    assert compared.images[0].get_clim() == (-1.0, 1.0)
    shares = grid_map(np.abs(values) / 6, ["layer 0", "layer 1"], ["a", "b"], most=1.0)
    assert shares.axes[0].images[0].get_clim() == (-1.0, 1.0), "a share has the blue of the same number elsewhere"
    assert [axes.get_ylim() for axes in shares.axes[1:]] == [(0.0, 1.0)]
