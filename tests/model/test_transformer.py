"""Blocks against a hand-written float64 forward pass; scan, loop and remat give the same result."""

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.groups import MoEConfig, RelativeConfig, RopeConfig
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.transformer import stack_layers, unstack_layers

TOKENS = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def _layernorm(p, x, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def _rmsnorm(p, x, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"]


def _attention(p, x, memory, *, scale, bias=None, causal=False, turn=lambda x: x):
    """Returns attention of one row, head by head; `turn` rotates queries and keys `[length, head_dim]`."""
    heads, kv_heads = p["query"]["kernel"].shape[1], p["key"]["kernel"].shape[1]
    out = 0.0
    for h in range(heads):
        g = h // (heads // kv_heads)
        query, key, value = (
            source @ p[name]["kernel"][:, i] + (p[name]["bias"][i] if "bias" in p[name] else 0.0)
            for name, source, i in (("query", x, h), ("key", memory, g), ("value", memory, g))
        )
        scores = turn(query) @ turn(key).T * scale + (0.0 if bias is None else bias[h])
        if causal:
            scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = out + (weights / weights.sum(-1, keepdims=True)) @ value @ p["out"]["kernel"][h]
    return out + p["out"].get("bias", 0.0)


def _gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _bert(p, tokens):
    """Post-norm: Devlin et al. 2019 on the layer of Vaswani et al. 2017, with the masked-LM head."""
    inputs, layer = p["backbone"]["inputs"], p["backbone"]["stack"]["layer_0"]
    norm = functools.partial(_layernorm, epsilon=1e-12)
    x = p["embedding"]["table"][tokens] + inputs["positions"]["table"][: len(tokens)] + inputs["types"]["table"][0]
    x = norm(inputs["norm"], x)
    x = norm(layer["attention_norm"], x + _attention(layer["attention"], x, x, scale=0.5))
    mlp = layer["mlp"]
    hidden = _gelu(x @ mlp["up"]["kernel"] + mlp["up"]["bias"])
    x = norm(layer["mlp_norm"], x + hidden @ mlp["down"]["kernel"] + mlp["down"]["bias"])
    head = p["transform"]
    x = norm(head["norm"], _gelu(x @ head["dense"]["kernel"] + head["dense"]["bias"]))
    return x @ p["embedding"]["table"].T + p["output_bias"]


def _llama(p, tokens):
    """Pre-norm, rotary, grouped keys, gated: Touvron et al. 2023."""
    layer, norm = p["backbone"]["stack"]["layer_0"], functools.partial(_rmsnorm, epsilon=1e-5)

    def turn(x):
        pairs = x[:, :2] + 1j * x[:, 2:]
        pairs = pairs * np.exp(1j * np.arange(len(x))[:, None] * 100.0 ** -np.array([0.0, 0.5]))
        return np.concatenate([pairs.real, pairs.imag], -1)

    x = p["embedding"]["table"][tokens]
    y = norm(layer["attention_norm"], x)
    x = x + _attention(layer["attention"], y, y, scale=0.5, causal=True, turn=turn)
    y = norm(layer["mlp_norm"], x)
    gate = y @ layer["mlp"]["gate"]["kernel"]
    x = x + (gate / (1 + np.exp(-gate)) * (y @ layer["mlp"]["up"]["kernel"])) @ layer["mlp"]["down"]["kernel"]
    return norm(p["backbone"]["stack"]["final_norm"], x) @ p["output"]["kernel"]


def _t5(p, tokens):
    """Pre-norm, RMS, relative bias, no score scale, tied and scaled logits: Raffel et al. 2020; both sides alike."""
    norm, distances = functools.partial(_rmsnorm, epsilon=1e-6), np.arange(len(tokens))
    memory = None
    for side in ("encoder", "decoder"):
        stack = p["backbone"][side]["stack"]
        layer, causal = stack["layer_0"], side == "decoder"
        away = distances[:, None] - distances[None, :]
        # With fewer than 8 tokens, each distance has its own bucket.
        bucket = np.maximum(away, 0) if causal else np.where(away < 0, 16 - away, away)
        bias = stack["relative_bias"]["table"][bucket].transpose(2, 0, 1)
        x = p["embedding"]["table"][tokens]
        y = norm(layer["attention_norm"], x)
        x = x + _attention(layer["attention"], y, y, scale=1.0, bias=bias, causal=causal)
        if causal:
            y = norm(layer["cross_attention_norm"], x)
            x = x + _attention(layer["cross_attention"], y, memory, scale=1.0)
        y = np.maximum(norm(layer["mlp_norm"], x) @ layer["mlp"]["up"]["kernel"], 0)
        x = norm(stack["final_norm"], x + y @ layer["mlp"]["down"]["kernel"])
        memory = x
    return x @ p["embedding"]["table"].T / 4.0


MODELS = {
    "bert": (
        _bert,
        "encoder",
        ("masked_lm",),
        {
            "norm_position": "post",
            "norm_epsilon": 1e-12,
            "mlp": "gelu",
            "embedding.types": 2,
            "embedding.norm": True,
            "head.bias": True,
            "head.transform": True,
        },
    ),
    "llama": (
        _llama,
        "decoder",
        (),
        {
            "norm": "rmsnorm",
            "biases": (),
            "mlp": "swiglu",
            "positions": "rope",
            "num_kv_heads": 2,
            "head.tied": False,
        },
    ),
    "t5": (
        _t5,
        "encoder_decoder",
        (),
        {
            "norm": "rmsnorm",
            "norm_epsilon": 1e-6,
            "biases": (),
            "mlp": "relu",
            "positions": "relative",
            "head.scale": True,
            "attention.scale": 1.0,
            "initializer": "fan_in",
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_one_layer_is_the_published_one(build, forward, name):
    reference, architecture, heads, fields = MODELS[name]
    model, params = build(architecture, heads, num_layers=1, scan_layers=False, **fields)
    sides = ("encoder_tokens", "decoder_tokens") if architecture == "encoder_decoder" else ("tokens",)
    outputs = forward(model, params, dict.fromkeys(sides, TOKENS), method="outputs")
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for row, tokens in enumerate(TOKENS):
        np.testing.assert_allclose(outputs["logits"][row], reference(exact, tokens), rtol=1e-4, atol=1e-4)


def _any_block(p, tokens, norm_position, block):
    """Returns one layer of a decoder, with norms and branches as the descriptions of the fields define them."""
    layer, norm = p["backbone"]["stack"]["layer_0"], functools.partial(_rmsnorm, epsilon=1e-5)
    before, after = norm_position in ("pre", "sandwich"), norm_position in ("sandwich", "output")
    branches = {
        "attention": lambda x: _attention(layer["attention"], x, x, scale=0.5, causal=True),
        "mlp": lambda x: np.maximum(x @ layer["mlp"]["up"]["kernel"], 0) @ layer["mlp"]["down"]["kernel"],
    }
    x = p["embedding"]["table"][tokens]
    start = x
    for name, branch in branches.items():
        y = start if block != "sequential" else x
        if before:
            y = norm(layer["attention_norm" if block == "parallel_shared" else f"{name}_norm"], y)
        y = branch(y)
        x = x + (norm(layer[f"{name}_output_norm"], y) if after else y)
        if norm_position == "post":
            x = norm(layer[f"{name}_norm"], x)
    if norm_position not in ("post", "none"):
        x = norm(p["backbone"]["stack"]["final_norm"], x)
    return x @ p["embedding"]["table"].T


@pytest.mark.parametrize(
    ("norm_position", "block"),
    [
        ("pre", "sequential"),
        ("post", "sequential"),
        ("sandwich", "sequential"),
        ("output", "sequential"),
        ("none", "sequential"),
        ("pre", "parallel"),
        ("sandwich", "parallel"),
        ("output", "parallel"),
        ("pre", "parallel_shared"),
        ("sandwich", "parallel_shared"),
    ],
)
def test_norms_and_branches_stand_where_the_fields_say(build, forward, norm_position, block):
    fields = {"norm": "rmsnorm", "norm_position": norm_position, "block": block, "biases": ()}
    model, params = build("decoder", num_layers=1, scan_layers=False, mlp="relu", positions="none", **fields)
    logits = forward(model, params, {"tokens": TOKENS}, method="outputs")["logits"]
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    expected = np.stack([_any_block(exact, tokens, norm_position, block) for tokens in TOKENS])
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    norms = sum("norm" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    expected = {"pre": 2, "post": 2, "sandwich": 4, "output": 2, "none": 0}[norm_position] - (
        block == "parallel_shared"
    )
    assert norms == expected + (norm_position not in ("post", "none")), "no norm that nothing uses"


def test_a_first_layer_without_its_norm_reads_the_normed_embeddings(build, forward):
    """If the embeddings end with this norm, the result is that of the model with the norm in the layer."""
    fields = {"embedding.norm": True, "scan_layers": False, "norm_epsilon": 1e-12}
    model, params = build("encoder", **fields)
    lacking, _ = build("encoder", first_norm=False, **fields)
    width = model.config.embed_dim
    plain = {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}
    params = jax.tree.map(lambda leaf: leaf, params)
    params["backbone"]["inputs"]["norm"] = params["backbone"]["stack"]["layer_0"]["attention_norm"] = plain
    expected = forward(model, params, {"tokens": TOKENS})
    del params["backbone"]["stack"]["layer_0"]["attention_norm"]
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(lacking, jax.random.key(0))))
    assert jax.tree.structure(shapes) == jax.tree.structure(params), "the other layers have theirs"
    np.testing.assert_allclose(forward(lacking, params, {"tokens": TOKENS}), expected, rtol=1e-4, atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def _gradients(model, params, rates=None):
    """Returns the gradients of a loss over the model's hidden states, with dropout where there are rates."""

    def loss(params):
        args = {"deterministic": rates is None, "dropout_rates": rates, "rngs": {"dropout": jax.random.key(7)}}
        hidden = model.apply({"params": params}, {"tokens": TOKENS}, **args)
        return jnp.mean(jnp.square(hidden @ jnp.sin(jnp.arange(16.0))))

    return jax.grad(loss)(params)


def _assert_equal_trees(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        found = functools.reduce(lambda tree, key: tree[key.key], path, actual)
        np.testing.assert_allclose(found, leaf, err_msg=jax.tree_util.keystr(path), **tolerance)


VARIED = {
    "relative": {"positions": "relative"},
    "relative per layer": {"positions": "relative", "relative": RelativeConfig(per_layer=True)},
    "windows and bases that alternate": {
        "positions": "rope",
        "rope": RopeConfig(theta=100.0, local_theta=3.0),
        "attention.window": 2,
        "attention.global_every": 2,
        "attention.global_offset": 1,
    },
    "experts": {"moe": MoEConfig(num_experts=3, dispatch="dense")},
}


@pytest.mark.parametrize("name", VARIED)
def test_scan_and_loop_are_one_model(build, name):
    model, params = build("decoder", **VARIED[name])
    loop = LanguageModel(model.config.model_copy(update={"scan_layers": False}))
    unrolled = unstack_layers(params)
    assert set(unrolled["backbone"]["stack"]) >= {"layer_0", "layer_1"}
    expected = _gradients(model, params)
    _assert_equal_trees(stack_layers(_gradients(loop, unrolled)), expected, rtol=1e-4, atol=1e-5)


def test_local_layers_have_their_own_base(build, forward):
    fields = VARIED["windows and bases that alternate"] | {"num_layers": 1}
    model, params = build("decoder", **fields, scan_layers=False)
    hidden = {}
    for base in (3.0, 100.0):
        for offset in (0, 1):
            rope = RopeConfig(theta=100.0, local_theta=base)
            config = model.config.model_copy(update={"rope": rope, "attention.global_offset": offset})
            hidden[base, offset] = forward(LanguageModel(config), params, {"tokens": TOKENS})
    np.testing.assert_array_equal(hidden[3.0, 0], hidden[100.0, 0], "a global layer has the model's base")
    assert np.abs(hidden[3.0, 1] - hidden[100.0, 1]).max() > 0.001, "a layer with a window its own"


@pytest.mark.parametrize("scan", [True, False])
def test_shared_layers_are_one_layer_many_times(build, scan):
    model, params = build("decoder", share_layers=True, scan_layers=scan)
    stack = params["backbone"]["stack"]
    assert set(stack) == {"shared_layer", "final_norm"}
    copies = {f"layer_{i}": stack["shared_layer"] for i in range(2)} | {"final_norm": stack["final_norm"]}
    config = model.config.model_copy(update={"share_layers": False, "scan_layers": False})
    apart = params | {"backbone": params["backbone"] | {"stack": copies}}
    gradients, expected = _gradients(model, params), _gradients(LanguageModel(config), apart)
    layers = [expected["backbone"]["stack"].pop(f"layer_{i}") for i in range(2)]
    expected["backbone"]["stack"]["shared_layer"] = jax.tree.map(lambda *leaves: sum(leaves), *layers)
    _assert_equal_trees(gradients, expected, rtol=1e-4, atol=1e-5)
    assert unstack_layers(params).keys() == params.keys()
    _assert_equal_trees(unstack_layers(params), params, rtol=0)


@pytest.mark.parametrize("scan", [True, False])
def test_depth_scaled_layers_start_smaller_the_deeper_they_are(build, scan):
    def start(initializer):
        model, _ = build("decoder", scan_layers=scan, initializer=initializer)
        params = jax.jit(lambda rng: nn.unbox(init_params(model, rng)))(jax.random.key(0))
        return params if scan else stack_layers(params)

    kernels, plain = (start(name)["backbone"]["stack"]["layers"] for name in ("depth_scaled", "normal"))
    for part, name in (("attention", "out"), ("mlp", "down")):
        ratio = kernels[part][name]["kernel"] / plain[part][name]["kernel"]
        expected = np.broadcast_to(np.array([2.0, 4.0])[:, None] ** -0.5, (2, ratio[0].size))
        np.testing.assert_allclose(ratio.reshape(2, -1), expected, rtol=1e-5)
    np.testing.assert_array_equal(kernels["mlp"]["up"]["kernel"], plain["mlp"]["up"]["kernel"])


@pytest.mark.parametrize("scan", [True, False])
def test_branches_drop_out_by_row_and_more_with_depth(build, forward, scan):
    """Of two layers at a rate of almost 1, the second layer adds nothing, and the first does for half of the rows."""
    rows = 64
    model, params = build("decoder", **{"dropout.layer": 0.5}, scan_layers=scan)
    rates = model.config.dropout.rates().replace(layer=np.float32(1 - 1e-6))
    tokens = {"tokens": np.tile(TOKENS[:1], (rows, 1))}
    args = {"deterministic": False, "dropout_rates": rates, "rngs": {"dropout": jax.random.key(1)}}
    hidden = jax.jit(lambda params: model.apply({"params": params}, tokens, **args))(params)
    one, _ = build("decoder", num_layers=1, scan_layers=False)
    stack = (unstack_layers(params) if scan else params)["backbone"]["stack"]
    counts = []
    for attention, mlp in itertools.product((0.0, 2.0), (0.0, 2.0)):
        layer = stack["layer_0"]
        layer = layer | {
            "attention": layer["attention"] | {"out": {k: attention * x for k, x in layer["attention"]["out"].items()}},
            "mlp": layer["mlp"] | {"down": {k: mlp * x for k, x in layer["mlp"]["down"].items()}},
        }
        kept = {"layer_0": layer, "final_norm": stack["final_norm"]}
        backbone = {"inputs": params["backbone"]["inputs"], "stack": kept}
        expected = forward(one, {"embedding": params["embedding"], "backbone": backbone}, {"tokens": TOKENS[:1]})
        counts.append(int((np.abs(hidden - expected).max((1, 2)) < 1e-3).sum()))
    assert sum(counts) == rows, "every row is one of the four, kept branches doubled"
    assert min(counts) > 5, "each branch of each row is dropped by itself"
    exact = forward(model, params, tokens)
    np.testing.assert_allclose(exact, jnp.broadcast_to(exact[:1], exact.shape), atol=1e-5)


@pytest.mark.parametrize(("scan", "remat"), [(True, "full"), (True, "dots"), (False, "full")])
def test_remat_changes_no_gradient_even_under_dropout(build, scan, remat):
    model, params = build("decoder", **{"dropout.residual": 0.2})
    config = model.config.model_copy(update={"scan_layers": scan})
    params = params if scan else unstack_layers(params)
    rates = config.dropout.rates()
    expected = _gradients(LanguageModel(config), params, rates)
    again = LanguageModel(config.model_copy(update={"remat": remat}))
    _assert_equal_trees(_gradients(again, params, rates), expected, rtol=1e-4, atol=1e-6)
    recomputed = jax.make_jaxpr(lambda params: _gradients(again, params, rates))(params)
    assert "remat" in str(recomputed) or "checkpoint" in str(recomputed), "the policy reaches the layers"


@pytest.mark.parametrize(("fields", "loop"), [({}, False), ({"remat": "full"}, True), ({"num_layers": 17}, True)])
def test_a_scan_is_a_loop_where_memory_or_compilation_needs_one(build, fields, loop):
    """On a CPU a few layers are compiled one after the other, but XLA would merge there what remat computes again."""
    model, params = build("decoder", **fields)
    assert model.config.scan_layers
    lowered = jax.jit(lambda params: _gradients(model, params)).lower(params)
    assert ("stablehlo.while" in lowered.as_text()) == loop


def test_stacking_boxed_parameters_keeps_their_axis_names(build):
    model, _ = build("decoder")
    boxes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    scanned = jax.tree.map(lambda leaf: np.random.default_rng(0).normal(size=leaf.shape).astype(np.float32), boxes)
    unrolled = unstack_layers(scanned)
    kernel = unrolled["backbone"]["stack"]["layer_1"]["mlp"]["up"]["kernel"]
    assert kernel.names == ("embed", "mlp")
    loop = LanguageModel(model.config.model_copy(update={"scan_layers": False}))
    fresh = jax.eval_shape(lambda: init_params(loop, jax.random.key(0)))
    assert jax.tree.structure(unrolled) == jax.tree.structure(fresh), "the loop's own tree, names included"
    again = stack_layers(unrolled)
    assert jax.tree.structure(again) == jax.tree.structure(scanned)
    assert again["backbone"]["stack"]["layers"]["mlp"]["up"]["kernel"].names == ("layers", "embed", "mlp")
    _assert_equal_trees(nn.unbox(again), nn.unbox(scanned), rtol=0)


def test_scanned_layers_start_different(build):
    model, _ = build("decoder")
    params = jax.jit(lambda rng: nn.unbox(init_params(model, rng)))(jax.random.key(0))
    kernel = params["backbone"]["stack"]["layers"]["mlp"]["up"]["kernel"]
    assert (kernel[0] != kernel[1]).any()


@pytest.mark.parametrize("scan", ["scanned", "unrolled", "shared"])
@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_every_layer_draws_a_mask_of_dropout_of_its_own(build, architecture, scan):
    """Two layers add ones, half of them dropped: the sum of two different masks has three values, else it has two."""
    options = {"scan_layers": scan != "unrolled", "share_layers": scan == "shared"}
    model, params = build(architecture, **{"dropout.residual": 0.5}, **options)

    def only_ones(path, leaf):
        ones = ("['mlp']['down']['bias']", "['final_norm']['scale']")
        return np.full_like(leaf, jax.tree_util.keystr(path).endswith(ones))

    params = jax.tree_util.tree_map_with_path(only_ones, params)
    args = {"deterministic": False, "rngs": {"dropout": jax.random.key(3)}}
    hidden = np.asarray(model.apply({"params": params}, {"tokens": TOKENS}, **args), np.float64)
    values = [len(np.unique(x.round(3))) for x in hidden.reshape(-1, hidden.shape[-1])]
    assert max(values) == 3
