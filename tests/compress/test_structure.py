"""Fewer heads, neurons, layers and rows: a smaller config, and what the large model computes without these parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.compress.calibrate import batches
from lmjax.compress.importance import gains, influence
from lmjax.compress.structure import without_heads, without_layers, without_neurons, without_rows
from lmjax.errors import FlagError
from lmjax.model import intercept
from lmjax.model.groups import AttentionConfig, EmbeddingConfig, MoEConfig
from lmjax.model.language_model import LanguageModel, abstract_params
from lmjax.model.parameters import flat, unboxed
from tests.inference.scoring import TEXT, tiny

CASES = pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("decoder", {"num_heads": 4, "num_kv_heads": 2, "positions": "rope", "mlp": "swiglu", "num_layers": 2}),
        ("encoder", {"num_heads": 4, "norm_position": "post", "embedding": EmbeddingConfig(types=2), "num_layers": 2}),
        ("encoder_decoder", {"num_heads": 4, "positions": "relative", "num_layers": 1}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)


def rows(loaded):
    words = TEXT.split()
    return batches(loaded, [(" ".join(words[i : i + 6]), None) for i in range(0, 18, 3)], 6, 12)


def outputs(model, params, batch, changes=None):
    found = intercept.replace(model, params, batch, changes or {}, method="outputs")
    return {name: np.asarray(x) for name, x in found.items()}


def only(kept, axis):
    def change(x):
        mask = np.zeros(x.shape[axis], np.float32)
        mask[kept] = 1
        return x * mask.reshape([-1 if i == axis else 1 for i in range(x.ndim)])

    return change


def check_shapes(smaller, heads):
    wanted = unboxed(abstract_params(smaller.config, heads))
    assert {p: x.shape for p, x in flat(smaller.params).items()} == {p: x.shape for p, x in flat(wanted).items()}


@CASES
@pytest.mark.parametrize("part", ["heads", "neurons"])
def test_the_smaller_model_computes_what_the_large_one_does_without_these_parts(architecture, fields, part):
    loaded = tiny(architecture, **fields)
    given = rows(loaded)
    shrink, name, axis = {"heads": (without_heads, "heads", 2), "neurons": (without_neurons, "hidden", 2)}[part]
    smaller = shrink(loaded, given, 0.5)
    check_shapes(smaller, loaded.model.heads)
    size = smaller.config.num_heads if part == "heads" else smaller.config.mlp_dim
    assert size == (2 if part == "heads" else 12)
    changes = {}
    for path, kept in smaller.kept.items():
        if "relative" in path:
            continue
        inner = "/".join(n for n in path.split("/") if n not in ("backbone", "stack"))
        if part == "heads" and loaded.config.num_kv_heads:
            kept = (np.asarray(kept)[:, None] * 2 + np.arange(2)).ravel()
        changes[f"{inner}/{name}"] = only(kept, axis)
    expected = outputs(loaded.model, loaded.params, given[0], changes)
    found = outputs(LanguageModel(smaller.config, loaded.model.heads), smaller.params, given[0])
    whole = outputs(loaded.model, loaded.params, given[0])
    for output, x in expected.items():
        np.testing.assert_allclose(found[output], x, atol=2e-4, err_msg=output)
    assert np.abs(whole["hidden"] - expected["hidden"]).max() > 1e-2


def test_the_importance_of_a_head_is_the_loss_s_derivative_with_respect_to_its_mask():
    """Against differences of the loss in float64 for one text, and the sum over texts for several."""
    loaded = tiny("decoder", num_layers=1)
    given = rows(loaded)
    name = "layer_0/attention/heads"
    found = gains(loaded, given, [name], 2)[name]

    def loss(row, scale):
        batch = {field: x[row : row + 1] for field, x in given[0].items()}
        out = outputs(
            loaded.model, loaded.params, batch, {name: lambda x: x * jnp.asarray(scale, x.dtype)[None, None, :, None]}
        )
        logits, tokens = np.asarray(out["logits"], np.float64)[0], batch["tokens"][0]
        count = int((batch["segment_ids"] > 0).sum())
        logs = (
            logits
            - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
            - logits.max(-1, keepdims=True)
        )
        return -logs[np.arange(count - 1), tokens[1:count]].sum()

    expected, step = np.zeros(2), 0.02
    for row in range(6):
        for head in range(2):
            scales = [np.where(np.arange(2) == head, 1 + sign * step, 1) for sign in (1, -1)]
            expected[head] += abs(loss(row, scales[0]) - loss(row, scales[1])) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=2e-2)


def test_layers_that_do_least_leave():
    loaded = tiny("decoder", num_layers=4, positions="rope")
    params = jax.tree.map(jnp.asarray, loaded.params)
    for branch in ("attention/out", "mlp/down"):
        kernel, first = branch.split("/")[1], branch.split("/")[0]
        layer = params["backbone"]["stack"]["layer_2"][first][kernel]
        params["backbone"]["stack"]["layer_2"][first][kernel] = jax.tree.map(lambda x: x * 1e-3, layer)
    loaded = dataclasses.replace(loaded, params=params)
    given = rows(loaded)
    scores = influence(loaded, given, "", 4)
    assert scores.argmin() == 2
    smaller = without_layers(loaded, given, 0.25)
    assert smaller.kept[""].tolist() == [0, 1, 3]
    check_shapes(smaller, loaded.model.heads)
    changes = {f"layer_2/{branch}": lambda x: x * 0 for branch in ("attention", "mlp")}
    expected = outputs(loaded.model, loaded.params, given[0], changes)
    found = outputs(LanguageModel(smaller.config), smaller.params, given[0])
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4)


def test_both_stacks_lose_layers():
    loaded = tiny("encoder_decoder", num_layers=2, num_decoder_layers=3)
    smaller = without_layers(loaded, rows(loaded), 0.34)
    assert (smaller.config.num_layers, smaller.config.num_decoder_layers) == (1, 2)
    check_shapes(smaller, loaded.model.heads)


def test_rows_without_a_token_leave():
    loaded = tiny("encoder")
    smaller = without_rows(loaded)
    assert smaller.config.vocab_size == 180
    check_shapes(smaller, loaded.model.heads)
    batch = loaded.rows([TEXT[:20]])
    found = outputs(LanguageModel(smaller.config, loaded.model.heads), smaller.params, batch)
    np.testing.assert_allclose(
        found["logits"], outputs(loaded.model, loaded.params, batch)["logits"][..., :180], atol=1e-5
    )


@pytest.mark.parametrize(
    ("shrink", "fields", "words"),
    [
        (without_heads, {"positions": "alibi"}, "positions=alibi a head depends on the number of the others"),
        (without_heads, {"attention": AttentionConfig(qk_norm="full")}, "qk_norm=full"),
        (without_neurons, {"moe": MoEConfig(num_experts=2, top_k=2)}, "the model has 2 experts"),
        (without_layers, {"share_layers": True, "num_layers": 2}, "the layers of this model share their parameters"),
    ],
)
def test_parts_that_depend_on_each_other_are_refused(shrink, fields, words):
    loaded = tiny("decoder", **fields)
    with pytest.raises(FlagError, match=words):
        shrink(loaded, rows(loaded), 0.5)
