"""Heads compute what BERT's appendix says, from the right position."""

import flax.linen as nn
import jax
import numpy as np

from lmjax.model.config import ModelConfig
from lmjax.model.heads import MaskedLMTransform, NextSentenceHead, ReplacedTokenHead

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
    mlm_transform=True,
)


def test_next_sentence_reads_the_first_position_alone():
    head = NextSentenceHead(CONFIG.model_copy(update={"dtype": "float32"}))
    hidden = jax.random.normal(jax.random.key(0), (3, 5, 16))
    logits, variables = head.init_with_output(jax.random.key(1), hidden)
    p = nn.unbox(variables)["params"]
    expected = np.tanh(hidden[:, 0] @ p["pooler"]["kernel"]) @ p["classifier"]["kernel"]
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_next_sentence_logits_are_float32_under_bfloat16():
    hidden = jax.random.normal(jax.random.key(0), (3, 5, 16), "bfloat16")
    logits, _ = NextSentenceHead(CONFIG).init_with_output(jax.random.key(1), hidden)
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
        for head in (MaskedLMTransform, NextSentenceHead, ReplacedTokenHead):
            shapes = nn.unbox(head(config).init(jax.random.key(0), np.zeros((1, 2, 16))))["params"]
            layers = [leaf for name, leaf in shapes.items() if name != "norm"]
            assert all(("bias" in layer) == bool(biases) for layer in layers), head


def test_masked_lm_transform_is_dense_activation_norm():
    transform = MaskedLMTransform(CONFIG.model_copy(update={"dtype": "float32"}))
    hidden = jax.random.normal(jax.random.key(0), (7, 16))
    y, variables = transform.init_with_output(jax.random.key(1), hidden)
    x = np.maximum(np.asarray(hidden @ nn.unbox(variables)["params"]["dense"]["kernel"], np.float64), 0)
    x -= x.mean(-1, keepdims=True)
    np.testing.assert_allclose(y, x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5), atol=1e-4)
