"""The analytic FLOP count against the compiler's own."""

import jax
import numpy as np
import pytest

from lmjax.model.flops import forward_flops, train_flops
from lmjax.model.language_model import HEADS

SIZES = {
    "vocab_size": 512,
    "embed_dim": 128,
    "num_heads": 4,
    "mlp_dim": 512,
    "num_layers": 2,
    "max_length": 64,
    "scan_layers": False,
}


@pytest.mark.parametrize(
    ("architecture", "fields", "shapes"),
    [
        ("encoder", {"mlm_transform": True}, {"tokens": (4, 64)}),
        ("decoder", {"num_kv_heads": 2, "mlp": "swiglu", "head_dim": 48, "positions": "rope"}, {"tokens": (4, 64)}),
        ("encoder_decoder", {"num_decoder_layers": 1}, {"encoder_tokens": (4, 64), "decoder_tokens": (4, 24)}),
    ],
)
def test_forward_flops_are_the_compilers(build, architecture, fields, shapes):
    model, params = build(architecture, HEADS if architecture == "encoder" else (), **(SIZES | fields))
    batch = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
    step = jax.jit(lambda params, batch: model.apply({"params": params}, batch, method="outputs"))
    counted = step.lower(params, batch).cost_analysis()["flops"]
    expected = forward_flops(model, batch)
    # The compiler also counts norms, softmax and activations: never fewer, and a few percent more.
    assert 0.99 < counted / expected < 1.06
    assert train_flops(model, batch) == 3 * expected


def test_fewer_predictions_cost_fewer_projections(build):
    model, _ = build("decoder", **SIZES)
    batch = {"tokens": np.zeros((4, 64), np.int32)}
    saved = forward_flops(model, batch) - forward_flops(model, batch, predictions=10)
    assert saved == 2 * 128 * 512 * (4 * 64 - 10)
