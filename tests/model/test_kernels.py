"""Attention kernels: each against a float64 reference, forward and gradients, for every mask and feature it has."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import axes
from lmjax.model import kernels
from lmjax.model.kernels import Mask, attention, softmax, vendor
from lmjax.model.kernels.xla_workarounds import unknown_zero

LENGTH = 40  # One block of 32 and a shorter one, or two of 16 and a shorter one.
SEGMENTS = np.repeat([[1, 1, 2, 2, 2, 3, 0, 0], [1, 2, 3, 3, 3, 3, 3, 3]], 5, axis=1)
POSITIONS = np.stack([np.arange(LENGTH) - np.argmax(row[:, None] == row[None], axis=0) for row in SEGMENTS])
PREFIX = POSITIONS < 3
ROWS, COLUMNS = np.arange(LENGTH)[:, None], np.arange(LENGTH)[None]
SAME = SEGMENTS[:, :, None] == SEGMENTS[:, None, :]
NEAR = np.abs(ROWS - COLUMNS) < 6
CAUSAL = ROWS >= COLUMNS
CACHED = {"query_positions": np.arange(21, 26)[None], "key_positions": np.arange(LENGTH)[None]}
LEADING = np.array([[1, 1, 3]] * 2)
PACKED = {"query_segments": SEGMENTS, "key_segments": SEGMENTS}

# By name: the mask, and the same as bool `[batch or 1, queries, keys]`.
MASKS = {
    "none": (Mask(), np.ones((1, LENGTH, LENGTH), bool)),
    "causal": (Mask(causal=True), CAUSAL[None]),
    "window": (Mask(window=6), NEAR[None]),
    "causal_window": (Mask(causal=True, window=6), (CAUSAL & NEAR)[None]),
    "traced_window": (Mask(causal=True, window=jnp.int32(6)), (CAUSAL & NEAR)[None]),
    "packed": (Mask(causal=True, **PACKED), SAME & CAUSAL),
    "packed_window": (Mask(window=6, **PACKED), SAME & NEAR),
    "sink_tokens": (
        Mask(causal=True, window=6, sink_tokens=2, key_positions=POSITIONS, **PACKED),
        SAME & CAUSAL & (NEAR | (POSITIONS < 2)[:, None, :]),
    ),
    "sink_tokens_of_the_row": (Mask(window=6, sink_tokens=2), (NEAR | (COLUMNS < 2))[None]),
    "global": (
        Mask(window=6, global_keys=PREFIX, global_queries=PREFIX, **PACKED),
        SAME & (NEAR | PREFIX[:, None, :] | PREFIX[:, :, None]),
    ),
    # Three keys before those of the row: two of segment 1, and one of segment 3.
    "leading": (
        Mask(window=6, leading=3, query_segments=SEGMENTS, key_segments=np.hstack([LEADING, SEGMENTS])),
        np.dstack([SEGMENTS[:, :, None] == LEADING[:, None], SAME & NEAR]),
    ),
    "prefix": (Mask(causal=True, prefix=PREFIX, **PACKED), SAME & (CAUSAL | PREFIX[:, None, :])),
    "prefix_window": (
        Mask(causal=True, window=6, prefix=PREFIX, **PACKED),
        SAME & NEAR & (CAUSAL | PREFIX[:, None, :]),
    ),
    # The keys lack one segment, so that all keys of its queries are masked.
    "memory": (Mask(query_segments=SEGMENTS, key_segments=SEGMENTS[:, :24]), SAME[:, :, :24]),
    "unpacked_memory": (Mask(key_segments=(SEGMENTS > 0)[:, :24].astype(np.int32)), (SEGMENTS > 0)[:, None, :24]),
    "window_past_the_keys": (Mask(window=6), NEAR[None, :, :24]),
    "cached": (Mask(causal=True, **CACHED), CAUSAL[None, 21:26]),
    "cached_window": (Mask(causal=True, window=6, **CACHED), (CAUSAL & NEAR)[None, 21:26]),
    # A cache whose oldest slots were overwritten has its keys in another order.
    "cached_ring": (
        Mask(causal=True, window=6, **CACHED | {"key_positions": np.roll(np.arange(LENGTH), 7)[None]}),
        np.roll((CAUSAL & NEAR)[None, 21:26], 7, axis=2),
    ),
}


def _arrays(seen, kv_heads=2):
    queries, keys = seen.shape[1] if seen.shape[1] > 1 else LENGTH, seen.shape[2]
    rng = np.random.default_rng(0)
    shapes = {
        "query": (2, queries, 4, 8),
        "key": (2, keys, kv_heads, 8),
        "value": (2, keys, kv_heads, 8),
        "bias": (1, 4, queries, keys),
        "sink_logits": (4,),
    }
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def _reference(arrays, seen, softcap=None):
    """Returns the output, and the gradients of its product with `_g`: head by head in float64."""
    a = {name: np.asarray(x, np.float64) for name, x in arrays.items()}
    group = a["query"].shape[2] // a["key"].shape[2]
    key, value = (np.repeat(a[name], group, axis=2) for name in ("key", "value"))
    scores = capped = 0.5 * np.einsum("bqhd,bkhd->bhqk", a["query"], key)
    if softcap is not None:
        capped = softcap * np.tanh(scores / softcap)
    weights = np.where(seen[:, None], np.exp(capped + a.get("bias", 0)), 0)
    sinks = np.exp(a["sink_logits"])[None, :, None, None] if "sink_logits" in a else 0
    total = weights.sum(axis=-1, keepdims=True) + sinks
    total = np.where(total == 0, 1, total)
    weights /= total
    y = np.einsum("bhqk,bkhd->bqhd", weights, value)
    g = _g(y.shape)
    d_weights = np.einsum("bqhd,bkhd->bhqk", g, value)
    share = (d_weights * weights).sum(axis=-1, keepdims=True)
    d_capped = weights * (d_weights - share)
    d_scores = 0.5 * d_capped * (1 if softcap is None else 1 - (capped / softcap) ** 2)

    def shared(x):
        return x.reshape(*x.shape[:2], -1, group, x.shape[3]).sum(axis=3)

    found = {
        "output": y,
        "query": np.einsum("bhqk,bkhd->bqhd", d_scores, key),
        "key": shared(np.einsum("bhqk,bqhd->bkhd", d_scores, a["query"])),
        "value": shared(np.einsum("bhqk,bqhd->bkhd", weights, g)),
        "bias": d_capped.sum(axis=0, keepdims=True),
        "sink_logits": -(share * sinks / total).sum(axis=(0, 2, 3)),
    }
    return {name: x for name, x in found.items() if name == "output" or name in arrays}


def _g(shape):
    return np.cos(np.arange(np.prod(shape))).reshape(shape)


def _check(f, arrays, seen, softcap=None, atol=1e-5):
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}

    def loss(arrays):
        y = f(arrays)
        return jnp.sum(y * _g(y.shape).astype(np.float32)), y

    found, y = jax.jit(jax.grad(loss, has_aux=True))(arrays)
    for name, x in _reference(arrays, seen, softcap).items():
        np.testing.assert_allclose(y if name == "output" else found[name], x, atol=atol, err_msg=name)
    blind = np.broadcast_to(~seen.any(axis=2), y.shape[:2])
    assert not np.asarray(y)[blind].any(), "a query that sees nothing gets nothing"
    assert not np.asarray(found["query"])[blind].any(), "a query that sees nothing sends no gradient"


@pytest.fixture
def blocks(monkeypatch):
    """Returns a function that sets the number of queries in a block and of spans in a row."""

    def set_to(size, spans):
        monkeypatch.setattr(softmax, "BLOCK", size)
        monkeypatch.setattr(softmax, "SPANS", spans)

    return set_to


def _call(arrays, mask, kernel, **fields):
    return attention(**arrays, mask=mask, scale=0.5, kernel=kernel, **fields)


def test_the_reference_is_a_softmax_over_what_is_seen():
    seen = MASKS["packed"][1]
    arrays = _arrays(seen)
    found = _reference(arrays, seen, softcap=2.0)["output"]
    for b, q, h in np.ndindex(2, LENGTH, 4):
        keys = np.flatnonzero(seen[b, q])
        scores = 2 * np.tanh(arrays["key"][b, keys, h // 2] @ arrays["query"][b, q, h] * 0.5 / 2)
        scores = np.append(scores + arrays["bias"][0, h, q, keys], arrays["sink_logits"][h])
        weights = np.exp(scores - scores.max())
        np.testing.assert_allclose(
            found[b, q, h], (weights / weights.sum())[:-1] @ arrays["value"][b, keys, h // 2], atol=1e-5
        )


@pytest.mark.parametrize("name", MASKS)
def test_plain_has_every_feature_under_every_mask(name):
    mask, seen = MASKS[name]
    _check(lambda arrays: _call(arrays, mask, "plain", softcap=2.0), _arrays(seen), seen, softcap=2.0)


@pytest.mark.parametrize(
    ("name", "size", "spans"),
    [
        ("causal", 32, 8),
        ("causal_window", 32, 8),
        ("prefix_window", 32, 8),
        ("memory", 32, 8),
        ("window_past_the_keys", 32, 8),
        ("none", 16, 1),
        ("traced_window", 16, 1),
        ("sink_tokens", 16, 1),
        ("global", 16, 1),
        ("leading", 16, 8),
    ],
)
def test_blocks_have_every_feature_in_turn_and_in_a_loop(name, size, spans, blocks):
    blocks(size, spans)
    mask, seen = MASKS[name]
    _check(lambda arrays: _call(arrays, mask, "blockwise", softcap=2.0), _arrays(seen), seen, softcap=2.0)


@pytest.mark.parametrize("name", MASKS)
def test_xla_under_every_mask(name):
    mask, seen = MASKS[name]
    arrays = {name: x for name, x in _arrays(seen).items() if name in ("query", "key", "value")}
    _check(lambda arrays: _call(arrays, mask, "xla"), arrays, seen)


@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("kernel", ["plain", "blockwise"])
def test_shared_key_heads(kv_heads, kernel, blocks):
    blocks(32, 8)
    mask, seen = MASKS["memory"]
    arrays = _arrays(seen, kv_heads)
    del arrays["sink_logits"]
    _check(lambda arrays: _call(arrays, mask, kernel), arrays, seen)


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_the_same_whole_and_in_parts_and_nothing_seen_is_cut_off(name):
    mask, seen = MASKS[name]
    queries, keys = seen.shape[1] if seen.shape[1] > 1 else LENGTH, seen.shape[2]
    seen = np.broadcast_to(seen, (len(seen), queries, keys))
    dense = mask.dense(queries, keys)
    np.testing.assert_array_equal(np.ones((1, queries, keys), bool) if dense is None else dense[:, 0], seen, name)
    sighted = mask.any_key_visible(queries, keys)
    np.testing.assert_array_equal(True if sighted is None else sighted, seen.any(axis=2) if sighted is not None else 1)
    assert sighted is not None or seen.any(axis=2).all()
    for start, stop in ((0, 5), (queries - 5, queries)):
        first, end = mask.columns(start, stop, keys)
        assert not seen[:, start:stop, mask.leading : first].any()
        assert not seen[:, start:stop, end:].any()
        part = mask.part(start, stop - start, first, end - first)
        assert part is None or (np.asarray(part)[:, 0] == seen[:, start:stop, first:end]).all()


def test_static_masks_spare_blocks_their_hidden_keys():
    assert Mask(causal=True).columns(16, 32, 64) == (0, 32)
    assert Mask(causal=True, window=6).columns(16, 32, 64) == (11, 32)
    assert Mask(window=6).columns(16, 32, 64) == (11, 37)
    assert Mask(causal=True, **CACHED).columns(16, 32, 64) == (0, 64)
    assert Mask(window=6, leading=8).columns(16, 32, 72) == (19, 45)


@pytest.mark.parametrize("kernel", ["plain", "blockwise"])
def test_dropped_probabilities_are_the_same_in_the_backward_pass(kernel, blocks):
    blocks(16, 1)
    mask, seen = MASKS["packed"]
    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(x) for name, x in _arrays(seen).items()}

        @jax.jit
        @jax.value_and_grad
        def loss(arrays):
            fields = {"dropout_rate": jnp.float64(0.3), "make_rng": lambda _: jax.random.key(1)}
            y = _call(arrays, mask, kernel, softcap=2.0, **fields)
            return jnp.sum(y * _g(y.shape))

        gradients = loss(arrays)[1]
        step = {name: 1e-5 * np.cos(np.arange(x.size)).reshape(x.shape) for name, x in arrays.items()}
        up, down = (loss({name: x + sign * step[name] for name, x in arrays.items()})[0] for sign in (1, -1))
        slope = sum(np.vdot(gradients[name], step[name]) for name in arrays)
        assert float(up - down) / 2 == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize("kernel", ["plain", "blockwise"])
def test_probabilities_are_dropped_and_scaled(kernel, blocks):
    blocks(100, 8)
    query = jnp.zeros((2, 200, 4, 8))
    fields = {"dropout_rate": jnp.float32(0.25), "make_rng": lambda _: jax.random.key(9), "kernel": kernel}
    y = jax.jit(lambda x: attention(x, x, jnp.ones_like(x), mask=Mask(), scale=1.0, **fields))(query)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(y[..., 0].std()) == pytest.approx((0.25 / 0.75 / 200) ** 0.5, rel=0.1)
    assert float(jnp.abs(y[:, :100] - y[:, 100:]).max()) > 0.01, "two blocks dropped the same places"


def test_blocks_never_have_all_scores_in_memory():
    """Scores of several blocks are not in memory at the same time, nor kept for the backward pass."""
    arrays = [jax.ShapeDtypeStruct((1, 1024, 4, 8), jnp.float32)] * 3

    def temporary(kernel):
        loss = lambda *x: jnp.sum(attention(*x, mask=Mask(causal=True), scale=1.0, kernel=kernel))  # noqa: E731
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = 4 * 1024 * 1024 * 4
    assert temporary("plain") > scores
    assert temporary("blockwise") < scores / 2


def test_a_population_of_models_slices_as_one_does(blocks):
    blocks(16, 1)
    x = jnp.stack(
        [jnp.asarray(_arrays(MASKS["causal"][1], 4)[name], jnp.float32) for name in ("query", "key", "value")]
    )
    gradient = jax.grad(
        lambda x: jnp.sum(attention(x, x, x, mask=Mask(causal=True), scale=0.1, kernel="blockwise") ** 2)
    )
    np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(x)[2], jax.jit(gradient)(x[2]), atol=1e-4)
    # `out_axes=None` fails if there is a zero for each model, with which all slices would become gathers.
    assert jax.vmap(lambda x: unknown_zero([x]), out_axes=None)(x) == 0


@pytest.mark.parametrize("kernel", ["plain", "blockwise"])
def test_bfloat16_products_have_bfloat16_operands_and_float32_sums(kernel, blocks):
    blocks(32, 8)
    mask, seen = MASKS["packed"]
    arrays = {name: jnp.asarray(x, jnp.bfloat16) for name, x in _arrays(seen).items()}
    jaxpr = jax.make_jaxpr(jax.grad(lambda arrays: jnp.sum(_call(arrays, mask, kernel)).astype(jnp.float32)))(arrays)
    products = [line for line in str(jaxpr).splitlines() if "dot_general[" in line]
    assert len(products) >= 5
    assert all(":f32[" in line for line in products)
    operands = [eqn.invars for eqn in _equations(jaxpr.jaxpr) if eqn.primitive.name == "dot_general"]
    # The gradient of a bias that rows share is a sum, on a CPU a product with ones (`cpu.repeated`).
    sums = [pair for pair in operands if pair[0].aval.shape[:1] == (1,) and pair[0].aval.ndim == 2]
    assert sums
    assert all(x.aval.dtype == jnp.bfloat16 for pair in operands if pair not in sums for x in pair)
    y, expected = jax.jit(lambda arrays: _call(arrays, mask, kernel))(arrays), _reference(arrays, seen)["output"]
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=0.02)


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from _equations(getattr(inner, "jaxpr", inner))


AUTO = jax.sharding.AxisType.Auto
SPLASH = {
    "causal_packed": ({"causal": True}, True, 128, 128, None),
    "window_capped": ({"window": 40}, False, 256, 256, 2.0),
    "memory": ({}, True, 128, 256, None),
}


@pytest.mark.parametrize(
    ("name", "split", "two"), [*((name, False, False) for name in SPLASH), ("causal_packed", True, False),
                               ("window_capped", False, True)]
)  # fmt: skip
def test_splash_interpreted(name, split, two, monkeypatch):
    """The TPU kernel with our arguments, on one device and split over four; its backward pass by one kernel or two."""
    monkeypatch.setattr(vendor, "_SPLASH_BLOCKS", (128,))
    if two:
        monkeypatch.setattr(vendor, "_ONE_PASS_ORDERED", 0)
    fields, packed, queries, keys, softcap = SPLASH[name]
    rng = np.random.default_rng(0)
    segments = [np.sort(rng.integers(1, 4, (2, n))) if packed else None for n in (queries, keys)]
    if queries == keys:
        segments[1] = segments[0]
    mask = Mask(query_segments=segments[0], key_segments=segments[1], **fields)
    seen = np.broadcast_to(
        True if mask.dense(queries, keys) is None else mask.dense(queries, keys)[:, 0], (2, queries, keys)
    )
    shapes = {"query": (2, queries, 4, 32), "key": (2, keys, 2, 32), "value": (2, keys, 2, 32)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}

    def f(arrays):
        return vendor.splash(**arrays, mask=mask, scale=0.5, softcap=softcap, interpret=True)

    if split:
        mesh = jax.make_mesh((2, 1, 1, 2), ("data", "fsdp", "sequence", "tensor"), axis_types=(AUTO,) * 4)
        with jax.set_mesh(mesh), nn.logical_axis_rules(axes.RULES):
            _check(f, arrays, seen, softcap)
    else:
        _check(f, arrays, seen, softcap)


@pytest.mark.parametrize(
    ("queries", "keys", "ordered", "one"),
    [(512, 512, True, True), (1024, 1024, True, True), (2048, 2048, True, False), (128, 2048, False, True),
     (4096, 4096, False, False)],
)  # fmt: skip
def test_one_kernel_computes_the_backward_pass_where_it_rounds_once(queries, keys, ordered, one):
    """It rounds the gradients of queries for each block of keys, so that all keys are one block."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash_kernels

    sizes = vendor._block_sizes(splash_kernels, queries, keys, ordered)
    assert sizes.use_fused_bwd_kernel == one
    assert sizes.block_kv_dkv == (keys if one else 512)
    assert sizes.block_kv_dkv_compute <= 512
    assert sizes.has_backward_blocks


def test_cudnn_is_told_of_order_and_window_by_flags_and_of_the_rest_by_a_mask(monkeypatch):
    """Keys that flags mask are skipped; keys masked by an array are computed and discarded."""
    calls = []

    def spy(query, key, value, bias, mask, **fields):
        calls.append((bias, mask, fields))
        return jnp.zeros_like(query)

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    x = jnp.zeros((2, LENGTH, 4, 8), jnp.bfloat16)
    for name in ("causal", "causal_window", "packed", "traced_window", "window", "prefix"):
        mask, seen = MASKS[name]
        attention(x, x, x, mask=mask, scale=0.5, bias=jnp.zeros((1, 4, LENGTH, LENGTH)))
        bias, dense, fields = calls.pop()
        assert bias.dtype == jnp.bfloat16
        assert fields["implementation"] == "cudnn"
        shown = np.ones((1, LENGTH, LENGTH), bool) if dense is None else np.asarray(dense)[:, 0]
        assert (dense is None) == (name in ("causal", "causal_window"))
        assert fields["is_causal"] == (name not in ("window", "prefix"))
        shown = shown & (CAUSAL | (not fields["is_causal"]))
        if fields["local_window_size"] is not None:
            left, right = fields["local_window_size"]
            shown = shown & (left >= ROWS - COLUMNS) & (right >= COLUMNS - ROWS)
        np.testing.assert_array_equal(shown, np.broadcast_to(seen, shown.shape), name)
