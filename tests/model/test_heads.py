"""Heads compute what their papers define, from the right position, for rows with and without padding."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from lmjax.model.config import ModelConfig
from lmjax.model.heads import HEADS, heads_of
from lmjax.model.heads.base import Size, Transform
from lmjax.model.heads.electra import ReplacedTokenHead
from lmjax.model.heads.rows import ClassifierHead, EmbeddingHead, NextSentenceHead, PoolerHead
from lmjax.model.heads.tokens import TaggerHead
from lmjax.model.language_model import LanguageModel, init_params

CONFIG = ModelConfig(
    architecture="encoder",
    vocab_size=8,
    embed_dim=16,
    num_heads=2,
    mlp_dim=8,
    num_layers=1,
    max_length=8,
    mlp="relu",
    dtype="bfloat16",
)


def test_next_sentence_reads_the_first_position_alone():
    head = NextSentenceHead(CONFIG.model_copy(update={"dtype": "float32"}))
    hidden = jax.random.normal(jax.random.key(0), (3, 5, 16))
    logits, variables = head.init_with_output(jax.random.key(1), hidden)
    p = nn.unbox(variables)["params"]
    expected = np.tanh(hidden[:, 0] @ p["pooler"]["kernel"]) @ p["classifier"]["kernel"]
    np.testing.assert_allclose(logits, expected, atol=1e-6)


@pytest.mark.parametrize("head", [NextSentenceHead, TaggerHead, ClassifierHead])
def test_logits_are_float32_under_bfloat16(head):
    hidden = jax.random.normal(jax.random.key(0), (3, 5, 16), "bfloat16")
    logits, _ = head(CONFIG).init_with_output(jax.random.key(1), hidden)
    assert logits.dtype == np.float32
    assert (logits != logits.astype("bfloat16").astype("float32")).any(), "not rounded on the way"


def test_a_replaced_token_is_told_from_its_own_place():
    head = ReplacedTokenHead(CONFIG)
    hidden = jax.random.normal(jax.random.key(0), (3, 5, 16), "bfloat16")
    logits, variables = head.init_with_output(jax.random.key(1), hidden)
    p = nn.unbox(variables)["params"]
    expected = np.maximum(hidden.astype("float32") @ p["dense"]["kernel"], 0) @ p["classifier"]["kernel"]
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected[..., 0], atol=1e-4)


def test_the_heads_have_biases_where_the_model_has_any():
    for biases in ((), ("query",)):
        config = CONFIG.model_copy(update={"biases": biases})
        for head in (Transform(config, 16), NextSentenceHead(config), ReplacedTokenHead(config), PoolerHead(config)):
            shapes = nn.unbox(head.init(jax.random.key(0), np.zeros((1, 2, 16))))["params"]
            layers = [leaf for name, leaf in shapes.items() if name != "norm"]
            assert all(("bias" in layer) == bool(biases) for layer in layers), head


def test_a_transform_is_dense_activation_norm():
    transform = Transform(CONFIG.model_copy(update={"dtype": "float32"}), 16)
    hidden = jax.random.normal(jax.random.key(0), (7, 16))
    y, variables = transform.init_with_output(jax.random.key(1), hidden)
    x = np.maximum(np.asarray(hidden @ nn.unbox(variables)["params"]["dense"]["kernel"], np.float64), 0)
    x -= x.mean(-1, keepdims=True)
    np.testing.assert_allclose(y, x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5), atol=1e-4)


HIDDEN = np.asarray(jax.random.normal(jax.random.key(0), (3, 5, 16)))
# A full row of two packed texts, a row with padding on the right, and one with padding on the left.
SEGMENTS = np.array([[1, 1, 2, 2, 2], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])


def _head(head, *args, **fields):
    """Returns the output of a float32 head, and its parameters, none of which is zero."""
    module = head(CONFIG.model_copy(update={"dtype": "float32", "head.labels": 3} | fields))
    shapes = nn.unbox(jax.eval_shape(lambda: module.init(jax.random.key(1), *args))).get("params", {})
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0.1, 0.4, leaf.shape).astype(np.float32), shapes)
    return module.apply({"params": params}, *args), params


def _layer(x, params):
    return x @ params["kernel"] + params["bias"]


def test_the_pooler_is_a_tanh_layer_over_the_first_position():
    pooled, p = _head(PoolerHead, HIDDEN)
    np.testing.assert_allclose(pooled, np.tanh(_layer(HIDDEN[:, 0], p["pooler"])), atol=1e-5)


@pytest.mark.parametrize("layer", ["tanh", "relu", "gelu"])
def test_an_encoders_classifier_is_a_layer_and_labels_over_the_first_position(layer):
    activation = {"tanh": np.tanh, "relu": jax.nn.relu, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}[layer]
    logits, p = _head(ClassifierHead, HIDDEN, SEGMENTS, **{"head.classifier": layer})
    expected = _layer(np.asarray(activation(_layer(HIDDEN[:, 0], p["dense"]))), p["classifier"])
    assert (logits.shape, logits.dtype) == ((3, 3), np.float32)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_mean_is_over_the_tokens_and_not_over_the_padding():
    logits, p = _head(ClassifierHead, HIDDEN, SEGMENTS, **{"head.pooling": "mean"})
    means = np.stack([HIDDEN[0].mean(0), HIDDEN[1, :2].mean(0), HIDDEN[2, 2:].mean(0)])
    np.testing.assert_allclose(logits, _layer(np.tanh(_layer(means, p["dense"])), p["classifier"]), atol=1e-5)
    whole, _ = _head(ClassifierHead, HIDDEN, None, **{"head.pooling": "mean"})
    np.testing.assert_allclose(whole[0], logits[0], atol=1e-5, err_msg="without segment_ids there is no padding")


def test_a_decoders_classifier_reads_the_last_token_through_one_matrix():
    """Only the last token has attended to the whole row; earlier tokens have not, and padding may follow it."""
    logits, p = _head(ClassifierHead, HIDDEN, SEGMENTS, architecture="decoder")
    assert list(p) == ["classifier"]
    assert list(p["classifier"]) == ["kernel"]
    last = np.stack([HIDDEN[0, 4], HIDDEN[1, 1], HIDDEN[2, 4]])
    np.testing.assert_allclose(logits, last @ p["classifier"]["kernel"], atol=1e-5)
    whole, _ = _head(ClassifierHead, HIDDEN, None, architecture="decoder")
    np.testing.assert_allclose(whole, HIDDEN[:, 4] @ p["classifier"]["kernel"], atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_vectors_are_of_the_tokens_of_their_texts(pooling):
    """Also of several texts in one row, and for a text that is absent a vector of zeros."""
    reduce = {"mean": lambda x: x.mean(0), "first": lambda x: x[0], "last": lambda x: x[-1]}[pooling]
    options = {"head.vector_pooling": pooling, "head.unit_length": False}
    vectors, p = _head(EmbeddingHead, HIDDEN, SEGMENTS, **options)
    assert not p
    expected = np.stack([reduce(HIDDEN[0]), reduce(HIDDEN[1, :2]), reduce(HIDDEN[2, 2:])])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    segments, ids = np.array([[1, 1, 2, 2, 2], [1, 2, 2, 0, 0], [1, 1, 1, 1, 1]]), np.array([[1, 2]] * 3)
    several, _ = _head(EmbeddingHead, HIDDEN, segments, ids, **options)
    for row, texts in enumerate(((slice(2), slice(2, 5)), (slice(1), slice(1, 3)), (slice(5), None))):
        for number, text in enumerate(texts):
            wanted = np.zeros(HIDDEN.shape[-1]) if text is None else reduce(HIDDEN[row, text])
            np.testing.assert_allclose(several[row, number], wanted, atol=1e-5)
    whole, _ = _head(EmbeddingHead, HIDDEN, None, **options)
    np.testing.assert_allclose(whole[0], expected[0], atol=1e-5)
    unit, _ = _head(EmbeddingHead, HIDDEN, SEGMENTS, **{"head.vector_pooling": pooling})
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=-1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("layer", ["tanh", "transform"])
def test_a_tagger_reads_every_token_alone(layer):
    logits, p = _head(TaggerHead, HIDDEN, **{"head.classifier": layer})
    x = HIDDEN
    if layer == "transform":
        x = np.maximum(_layer(HIDDEN, p["transform"]["dense"]), 0)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * p["transform"]["norm"]["scale"] + p["transform"]["norm"]["bias"]
    assert (logits.shape, logits.dtype) == ((3, 5, 3), np.float32)
    np.testing.assert_allclose(logits, _layer(x, p["classifier"]), atol=1e-4)


def test_a_classifier_through_the_transform_has_what_a_tagger_has():
    logits, p = _head(ClassifierHead, HIDDEN, SEGMENTS, **{"head.classifier": "transform"})
    tags, same = _head(TaggerHead, HIDDEN, **{"head.classifier": "transform"})
    assert jax.tree.map(np.shape, p) == jax.tree.map(np.shape, same)
    np.testing.assert_allclose(logits, tags[:, 0], atol=1e-5)


def test_labels_have_a_bias_on_an_encoder_without_any():
    """As in ModernBERT, whose layers have no biases."""
    _, p = _head(ClassifierHead, HIDDEN, SEGMENTS, biases=())
    assert list(p["dense"]) == ["kernel"]
    assert sorted(p["classifier"]) == ["bias", "kernel"]


FAMILIES = ("encoder", "decoder", "encoder_decoder")
ON_FAMILIES = [(family, name) for family in FAMILIES for name in heads_of(family)]


@pytest.mark.parametrize(("family", "name"), ON_FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_head_gives_what_it_declares_on_every_family_that_it_declares(build, family, name, dtype):
    """Each head has the outputs and the parameters that it declares, and FLOPs if it has matrix products."""
    model, params = build(family, (name,), dtype=dtype, **{"head.labels": 3})
    head, config = HEADS[name], model.config
    sides = ("encoder_", "decoder_") if family == "encoder_decoder" else ("",)
    batch = {f"{side}tokens": np.ones((2, 6), np.int32) for side in sides}
    found = jax.eval_shape(lambda p: model.apply({"params": p}, batch, method="outputs"), params)
    sizes = {"batch": 2, "length": 6, "embed": 16, "labels": 3, "vocab": config.vocab_size}
    expected = {o.name: (tuple(sizes.get(a, a) for a in o.axes), o.dtype or dtype) for o in head.outputs}
    assert found.pop("hidden").shape == (2, 6, 16)
    assert {k: (x.shape, x.dtype.name) for k, x in found.items()} == expected
    assert set(params) - {"embedding", "backbone"} <= {head.subtree} if head.subtree else {"output"}
    assert (head.flops(config, Size(2, 6, 12)) > 0) == bool(head.outputs)
    inner = head.submodel(config)
    assert (inner is not None) == (hasattr(head, "states") and hasattr(head, "logits"))


@pytest.mark.parametrize(("family", "name"), [(f, n) for f in FAMILIES for n in HEADS if (f, n) not in ON_FAMILIES])
def test_a_head_is_refused_by_the_families_that_it_does_not_declare(build, family, name):
    model = LanguageModel(build(family)[0].config, (name,))
    with pytest.raises(
        ValueError, match=rf"'{name}' is for .*; architecture='{family}' can have .*{heads_of(family)[-1]}"
    ):
        jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def test_heads_say_apart_where_their_parameters_and_their_outputs_are():
    """Two heads with one subtree would share parameters; of two outputs with one name only one would be returned."""
    for family in FAMILIES:
        heads = [HEADS[name] for name in heads_of(family)]
        subtrees = [head.subtree for head in heads]
        outputs = [output.name for head in heads for output in head.outputs]
        assert len(set(subtrees)) == len(subtrees)
        assert len({"hidden", *outputs}) == len(outputs) + 1
