"""The computed number of FLOPs against that of the compiler."""

import jax
import numpy as np
import pytest

from lmjax.model.flops import again_flops, forward_flops, train_flops
from lmjax.model.groups import MoEConfig
from lmjax.model.heads import heads_of

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
        ("encoder", {"head.transform": True}, {"tokens": (4, 64)}),
        ("encoder", {"head.classifier": "transform", "head.labels": 64}, {"tokens": (4, 64)}),
        ("encoder", {"embedding.dim": 64, "moe": MoEConfig(num_experts=2, dispatch="dense")}, {"tokens": (4, 64)}),
        ("decoder", {"num_kv_heads": 2, "mlp": "swiglu", "head_dim": 48, "positions": "rope"}, {"tokens": (4, 64)}),
        ("encoder_decoder", {"num_decoder_layers": 1}, {"encoder_tokens": (4, 64), "decoder_tokens": (4, 24)}),
    ],
)
def test_forward_flops_are_the_compilers(build, architecture, fields, shapes):
    model, params = build(architecture, heads_of(architecture) if architecture == "encoder" else (), **(SIZES | fields))
    batch = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
    step = jax.jit(lambda params, batch: model.apply({"params": params}, batch, method="outputs"))
    counted = step.lower(params, batch).cost_analysis()["flops"]
    expected = forward_flops(model, batch)
    # The compiler also counts norms, softmax and activations: a few percent more, and never fewer.
    assert 0.99 < counted / expected < 1.06
    assert train_flops(model, batch) == 3 * expected


@pytest.mark.parametrize(
    ("architecture", "fields", "shapes"),
    [
        ("decoder", {"block": "parallel", "mlp": "swiglu"}, {"tokens": (4, 64)}),
        ("decoder", {"norm_position": "sandwich"}, {"tokens": (4, 64)}),
        ("encoder_decoder", {"num_decoder_layers": 1}, {"encoder_tokens": (4, 64), "decoder_tokens": (4, 24)}),
    ],
)
def test_flops_of_layers_that_are_computed_again(build, architecture, fields, shapes):
    """All of a layer but the product that only its output needs; the head is not computed again."""
    batch = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
    counted = {}
    for remat in ("none", "full"):
        model, params = build(architecture, **(SIZES | {"num_layers": 1} | fields | {"remat": remat}))

        def loss(params, batch, model=model):
            return model.apply({"params": params}, batch, method="outputs")["logits"].sum()

        step = jax.jit(jax.grad(loss)).lower(params, batch)
        counted[remat] = step.cost_analysis()["flops"], again_flops(model, batch)
    assert counted["none"][1] == 0
    assert 0.98 < (counted["full"][0] - counted["none"][0]) / counted["full"][1] < 1.15


@pytest.mark.parametrize(
    ("architecture", "fields", "causal", "keys"),
    [
        ("decoder", {}, False, (64, 64)),
        ("decoder", {}, True, (32, 32)),
        ("encoder", {}, True, (64, 64)),
        ("decoder", {"attention.window": 16}, False, (16, 16)),
        ("encoder", {"attention.window": 16}, False, (31, 31)),
        (
            "decoder",
            {"attention.window": 40, "attention.global_every": 2, "attention.global_offset": 1},
            True,
            (32, 32),
        ),
        (
            "decoder",
            {"attention.window": 16, "attention.global_every": 2, "attention.global_offset": 1},
            True,
            (16, 32),
        ),
    ],
)
def test_pairs_of_queries_and_keys(build, architecture, fields, causal, keys):
    batch, none = {"tokens": np.zeros((4, 64))}, {"tokens": np.zeros((4 * 64, 1))}
    model, _ = build(architecture, **(SIZES | fields))
    without = forward_flops(build(architecture, **SIZES)[0], none) - 2 * 4 * 64 * 4 * 128
    assert forward_flops(model, batch, causal=causal) - without == 4 * 4 * 64 * 128 * sum(keys)
    assert train_flops(model, batch, causal=causal) == 3 * forward_flops(model, batch, causal=causal)


def test_fewer_predictions_cost_fewer_projections(build):
    model, _ = build("decoder", **SIZES)
    batch = {"tokens": np.zeros((4, 64), np.int32)}
    saved = forward_flops(model, batch) - forward_flops(model, batch, predictions=10)
    assert saved == 2 * 128 * 512 * (4 * 64 - 10)
