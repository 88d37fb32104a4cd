"""What each kernel alone does to the outputs, against the divergence of each text's own predictions in float64."""

import dataclasses

import numpy as np
import pytest

from lmjax.compress.calibrate import batches
from lmjax.compress.sensitivity import figure, sensitivity
from lmjax.model.parameters import flat, unflat
from lmjax.model.quantized import QuantizationConfig, quantize_layers
from tests.inference.scoring import tiny

TEXTS = ("The young king goes", "a queen sees the river house")


def test_one_kernel_is_compressed_at_a_time():
    loaded = tiny("decoder", num_layers=2)
    small = quantize_layers(loaded.params, QuantizationConfig(weights="int4"))
    found = sensitivity(loaded, batches(loaded, [(text, None) for text in TEXTS], 9, 16), small)
    path = "backbone/stack/layer_1/mlp/down/kernel"
    params = unflat(flat(loaded.params) | {path: flat(small)[path]})
    total, number = 0.0, 0
    for text in TEXTS:
        both = [np.asarray(x(text).logits[0, : len(x.encode(text))], np.float64) for x in
                (loaded, dataclasses.replace(loaded, params=params))]  # fmt: skip
        logs = [x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
                for x in both]  # fmt: skip
        total, number = total + np.sum(np.exp(logs[0]) * (logs[0] - logs[1])), number + len(logs[0])
    assert total / number > 2e-5
    assert found[path] == pytest.approx(total / number, rel=2e-2)
    assert len(found) == 12


def test_the_figure_has_a_row_for_each_layer_and_nothing_where_a_layer_has_no_such_kernel():
    pytest.importorskip("matplotlib")
    values = {"backbone/encoder/stack/layer_0/mlp/up/kernel": 1.0, "backbone/decoder/stack/layer_0/mlp/up/kernel": 2.0,
              "backbone/decoder/stack/layer_0/cross_attention/key/kernel": 3.0}  # fmt: skip
    axes, *_ = figure(values).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["encoder layer_0", "decoder layer_0"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["mlp/up", "cross_attention/key"]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(-1), [[1, -1], [2, 3]])
