"""Sampling: greedy is the likeliest, drawing follows the distribution, and what a model memorised comes back."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.inference.sample import extend, sample_ids, until
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel, init_params


def test_temperature_zero_takes_the_likeliest():
    logits = jnp.array([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]])
    np.testing.assert_array_equal(sample_ids(logits, jax.random.key(0), 0, 3), [1, 0])


def test_draws_follow_the_distribution_among_the_top():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
    drawn = sample_ids(jnp.tile(logits, (20_000, 1)), jax.random.key(0), 1.0, 2)
    share = np.bincount(drawn, minlength=4) / 20_000
    np.testing.assert_allclose(share, [2 / 3, 1 / 3, 0, 0], atol=0.02)


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_greedy_writing_is_consistent_with_one_forward_pass(architecture):
    """Every written id is the likeliest after those before it, as the whole row in one pass sees it."""
    config = ModelConfig(
        architecture=architecture, vocab_size=32, embed_dim=16, num_heads=2, mlp_dim=32, num_layers=1, max_length=16,
        init_std=0.5,
    )  # fmt: skip
    model = LanguageModel(config)
    params = nn.unbox(init_params(model, jax.random.key(0)))
    prompt = jnp.array([[3, 9, 4, 0, 0, 0, 0, 0]])
    if architecture == "decoder":
        batch, field = {"tokens": prompt}, "tokens"
    else:
        batch, field = {"encoder_tokens": prompt, "decoder_tokens": prompt}, "decoder_tokens"
    written = extend(model, params, batch, field=field, start=3, temperature=0, top_k=1, banned=[5])
    np.testing.assert_array_equal(written[:, :3], prompt[:, :3])
    hidden = model.apply({"params": params}, batch | {field: jnp.asarray(written)})
    logits = model.apply({"params": params}, hidden, method="logits").at[..., 5].set(-jnp.inf)
    np.testing.assert_array_equal(written[0, 3:], jnp.argmax(logits, axis=-1)[0, 2:-1])


def test_until_stops_in_front_of_the_end():
    np.testing.assert_array_equal(until(np.array([4, 5, 3, 6]), 3), [4, 5])
    np.testing.assert_array_equal(until(np.array([4, 5]), 3), [4, 5])
