"""Position schemes against their definitions, computed one element at a time."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.config import ModelConfig
from lmjax.model.positions import RelativeBias, relative_bucket, rope, sinusoidal

CONFIG = ModelConfig(
    architecture="encoder",
    vocab_size=8,
    embed_dim=16,
    num_heads=2,
    mlp_dim=8,
    num_layers=1,
    max_length=8,
    positions="relative",
    relative_buckets=8,
    relative_max_distance=12,
)


def _bucket(distance, buckets, max_distance, causal):
    """T5's bucket of one distance, as the paper words it."""
    first = 0
    if not causal:
        buckets //= 2
        first = buckets if distance > 0 else 0
        distance = -abs(distance)
    away = max(0, -distance)
    exact = buckets // 2
    if away < exact:
        return first + away
    steps = math.log(away / exact) / math.log(max_distance / exact) * (buckets - exact)
    return first + min(buckets - 1, exact + math.floor(steps))


@pytest.mark.parametrize("causal", [False, True])
def test_relative_buckets_are_t5s(causal):
    distances = np.arange(-300, 301)
    expected = [_bucket(int(d), 32, 128, causal) for d in distances]
    np.testing.assert_array_equal(relative_bucket(distances, 32, 128, causal), expected)


def test_relative_buckets_at_the_boundaries():
    distances = np.array([0, -7, -8, -16, -32, -64, -128, -999, 7, 8, 16, 64, 999])
    expected = [0, 7, 8, 10, 12, 14, 15, 15, 23, 24, 26, 30, 31]
    np.testing.assert_array_equal(relative_bucket(distances, 32, 128, causal=False), expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 7), (20, 2), (1, 1)])
def test_relative_bias_is_the_tables_entry_for_every_pair(causal, queries, keys):
    module = RelativeBias(CONFIG, causal)
    bias, variables = module.init_with_output(jax.random.key(0), queries, keys)
    table = np.asarray(nn.unbox(variables)["params"]["table"])
    expected = [[table[_bucket(k - q, 8, 12, causal)] for k in range(keys)] for q in range(queries)]
    np.testing.assert_array_equal(bias[0], np.transpose(expected, (2, 0, 1)))


def test_sinusoidal_is_that_of_the_transformer_paper():
    positions = np.array([[0, 1, 7, 500]])
    expected = np.zeros((1, 4, 6))
    for i in range(3):
        angle = positions / 10_000 ** (2 * i / 6)
        expected[..., 2 * i], expected[..., 2 * i + 1] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(sinusoidal(jnp.asarray(positions), 6), expected, atol=5e-5)


def test_rope_rotates_each_pair_by_its_angle():
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 4, 2, 6)))
    positions = np.array([[0, 3, 1, 9]])
    pairs = x[..., :3] + 1j * x[..., 3:]
    turned = pairs * np.exp(1j * positions[:, :, None, None] * 100.0 ** -(np.arange(3) / 3))
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rope(jnp.asarray(x), jnp.asarray(positions), 100.0), expected, rtol=1e-4, atol=1e-5)


def test_rope_scores_depend_on_the_distance_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 3, 1, 8))

    def scores(start):
        positions = jnp.array([[0, 2, 5]]) + start
        return jnp.einsum("bqhd,bkhd->bqk", rope(query, positions, 100.0), rope(key, positions, 100.0))

    np.testing.assert_allclose(scores(0), scores(37), atol=1e-4)
