"""Heads compute what BERT's appendix says, from the right position."""

import flax.linen as nn
import jax
import numpy as np

from lmjax.model.config import ModelConfig
from lmjax.model.heads import MaskedLMTransform, NextSentenceHead

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


def test_masked_lm_transform_is_dense_activation_norm():
    transform = MaskedLMTransform(CONFIG.model_copy(update={"dtype": "float32"}))
    hidden = jax.random.normal(jax.random.key(0), (7, 16))
    y, variables = transform.init_with_output(jax.random.key(1), hidden)
    x = np.maximum(np.asarray(hidden @ nn.unbox(variables)["params"]["dense"]["kernel"], np.float64), 0)
    x -= x.mean(-1, keepdims=True)
    np.testing.assert_allclose(y, x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5), atol=1e-4)
