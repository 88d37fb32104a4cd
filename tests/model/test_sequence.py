"""Attention over rows that are split over 2, 4 and 8 devices equals that of whole rows, with its gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import axes
from lmjax.errors import FlagError
from lmjax.model.kernels import Mask, attention, ring, sequence
from lmjax.model.positions.alibi import alibi
from lmjax.model.positions.by_distance import ByDistance
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from tests.thinned import thinned

pytestmark = pytest.mark.usefixtures("all_devices")

LENGTH = 32
SEGMENTS = jnp.asarray([[1] * 9 + [2] * 14 + [3] * 5 + [0] * 4, [1] * 16 + [2] * 16])
PLACES = jnp.asarray([[*range(9), *range(14), *range(5), *range(4)], [*range(16), *range(16)]])
PACKED = {"query_segments": SEGMENTS, "key_segments": SEGMENTS}
CASES = {
    "causal, by distance": ({"causal": True, **PACKED}, {"by distance": True}, {"num_kv": 2}),
    "whole": ({}, {}, {}),
    "packed window, capped": ({"causal": True, "window": 5, **PACKED}, {"softcap": 3.0}, {"num_kv": 1}),
    "causal": ({"causal": True}, {}, {"num_kv": 2}),
    "cross": ({"query_segments": SEGMENTS[:, 8:24], "key_segments": SEGMENTS}, {"sinks": True}, {"queries": 16}),
    "causal, packed, ALiBi": ({"causal": True, **PACKED}, {"alibi": True}, {}),
    "sink tokens": ({"causal": True, "window": 3, "sink_tokens": 2, "key_positions": PLACES, **PACKED}, {}, {}),
    "both sides, by distance": (PACKED, {"by distance": True}, {}),
    "traced window, sink logits": ({"causal": True, "window": jnp.int32(7)}, {"sinks": True}, {}),
    "window on both sides": ({"window": 6, **PACKED}, {}, {}),
    "a prefix": ({"causal": True, "prefix": PLACES < 3, **PACKED}, {}, {"num_kv": 2}),
    "sink tokens of one text": ({"causal": True, "window": 3, "sink_tokens": 9}, {}, {}),
}


def case(name, heads=4):
    """Returns the arguments that are differentiated, and the function of them."""
    mask, features, sizes = CASES[name]
    draw = np.random.default_rng(0).normal
    queries, num_kv = sizes.get("queries", LENGTH), sizes.get("num_kv", heads)
    arrays = {
        name: jnp.asarray(draw(size=(2, length, count, 8)), jnp.float32)
        for name, length, count in (("query", queries, heads), ("key", LENGTH, num_kv), ("value", LENGTH, num_kv))
    }
    if "alibi" in features:
        arrays["bias"] = alibi(heads, jnp.arange(queries)[None], jnp.arange(LENGTH)[None])
    if "by distance" in features:
        # As of a learned bias, which differs in both directions and has a gradient.
        arrays["bias"] = ByDistance(jnp.asarray(draw(size=(heads, 2 * LENGTH - 1)), jnp.float32))
    if "sinks" in features:
        arrays["sink_logits"] = jnp.asarray(draw(size=heads), jnp.float32)
    given = jnp.asarray(draw(size=(2, queries, heads, 8)), jnp.float32)

    def loss(arrays):
        bias = arrays.get("bias")
        if isinstance(bias, ByDistance) and axes.sequence_ways() == 1:
            bias = bias.part(0, queries, 0, LENGTH)
        y = attention(**arrays | {"bias": bias}, mask=Mask(**mask), scale=0.5, softcap=features.get("softcap"))
        return jnp.sum(y * given), y

    return arrays, jax.value_and_grad(loss, has_aux=True)


def split(function, arrays, sizes, how):
    mesh = make_mesh(ParallelConfig(**sizes), jax.devices()[: int(np.prod(list(sizes.values())))])
    with jax.set_mesh(mesh), nn.logical_axis_rules(axes.SEQUENCE_RULES[how]):
        return jax.jit(lambda arrays: function(arrays))(arrays)


@pytest.mark.parametrize(
    ("name", "how"), [*thinned([(name, "ring") for name in CASES], 2), *thinned([(n, "all_to_all") for n in CASES], 4)]
)
def test_split_rows_are_attended_to_like_whole_ones(name, how):
    arrays, function = case(name)
    few = CASES[name][2].get("num_kv", 4) < 4 and name != "causal"
    sizes = {"data": 2, "sequence": 4} if few or len(name) % 2 else {"data": 2, "sequence": 2, "tensor": 2}
    expected, found = function(arrays), split(function, arrays, sizes, how)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize(
    ("how", "mask", "expected"),
    [
        # Zig-zag: queries, keys and values go there, the result comes back, each in 2 halves; keys and values go round.
        ("ring", {"causal": True}, 4 * 2 + 2),
        ("ring", {}, 2),
        ("ring", {"causal": True, "window": 6}, 2),
        ("all_to_all", {"causal": True}, 4),
    ],
)
def test_what_the_devices_exchange(how, mask, expected):
    arrays, _ = case("whole")
    mesh = make_mesh(ParallelConfig(data=1, sequence=4), jax.devices()[:4])

    def forward(arrays):
        return attention(**arrays, mask=Mask(**mask), scale=0.5)

    with jax.set_mesh(mesh), nn.logical_axis_rules(axes.SEQUENCE_RULES[how]):
        text = jax.jit(forward).lower(arrays).as_text()
    name = {"ring": "collective_permute", "all_to_all": "all_to_all"}[how]
    assert text.count(f"stablehlo.{name}") == expected


@pytest.mark.parametrize(("window", "steps"), [(1, 1), (2, 2), (9, 2), (10, 3), (99, 4)])
def test_a_window_ends_the_round_early(window, steps):
    """The 8 positions of a device, and the window - 1 before the first of them, are on so many devices."""
    assert ring.ring_plan(4, 32, 32, Mask(causal=True, window=window), None, 1.0, None).steps == steps


def test_zigzag_gives_all_devices_as_much():
    plan = ring.ring_plan(4, 32, 32, Mask(causal=True), None, 1.0, None)
    assert plan.pieces == 2

    def visible(device):
        mine, steps = plan.starts(device, 4), range(plan.ways)
        return sum(
            bool(ring._visible(Mask(causal=True), start, 4, position, 4))
            for step in steps for start in mine for position in plan.starts((device - step) % 4, 4)
        )  # fmt: skip

    assert {visible(device) for device in range(4)} == {9}


def test_dropout_differs_between_devices_and_keeps_the_mean():
    arrays, _ = case("whole")
    arrays["value"] = jnp.ones_like(arrays["value"])

    def forward(arrays):
        return attention(
            **arrays, mask=Mask(), scale=0.0, dropout_rate=jnp.float32(0.5), make_rng=lambda _: jax.random.key(0)
        )

    for how in axes.SEQUENCE_RULES:
        found = np.asarray(split(forward, arrays, {"data": 2, "sequence": 4}, how))[..., 0]
        assert found.mean() == pytest.approx(1, abs=0.05)
        assert len(np.unique(found.reshape(2, 4, -1)[:, :, :8].reshape(8, -1), axis=0)) == 8, how


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"lengths": (30,)}, "sequence=4 does not divide rows of 30"),
        ({"heads": 6}, "sequence_attention=all_to_all: .* the 6 heads"),
        ({"kernel": "splash", "ring": True}, "attention.kernel=splash: ring"),
    ],
)
def test_what_cannot_be_split_is_named(arguments, named):
    with pytest.raises(FlagError, match=named):
        sequence.check_split(**{"ways": 4, "lengths": (32,), "heads": 4, "kernel": "auto", "ring": False} | arguments)
