"""Attention: who sees whom, the softmax, shared key heads, and queries that may see nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.attention import attention_mask, dot_product_attention


def _inputs(kv_heads=4, queries=3, keys=5):
    shapes = (2, queries, 4, 8), (2, keys, kv_heads, 8), (2, keys, kv_heads, 8)
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


@jax.jit
def _attend(query, key, value, bias=None, mask=None, rate=None, scale=0.5):
    return dot_product_attention(
        query, key, value, scale=scale, bias=bias, mask=mask, dropout_rate=rate, make_rng=lambda _: jax.random.key(9)
    )


def _reference(query, key, value, bias, mask):
    """One query, one head at a time, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    batch, queries, heads, _ = query.shape
    group = heads // key.shape[2]
    out = np.zeros(query.shape)
    for b, q, h in np.ndindex(batch, queries, heads):
        seen = [k for k in range(key.shape[1]) if mask[b, q, k]]
        if seen:
            scores = np.array([0.5 * query[b, q, h] @ key[b, k, h // group] + bias[h, q, k] for k in seen])
            weights = np.exp(scores - scores.max())
            out[b, q, h] = (weights / weights.sum()) @ value[b, seen, h // group]
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_is_a_softmax_over_what_is_seen(kv_heads):
    query, key, value = _inputs(kv_heads)
    bias = np.asarray(jax.random.normal(jax.random.key(5), (4, 3, 5)))
    mask = np.array(jax.random.bernoulli(jax.random.key(6), 0.6, (2, 3, 5)))
    mask[1, 1] = False
    y = _attend(query, key, value, jnp.asarray(bias)[None], jnp.asarray(mask)[:, None])
    np.testing.assert_allclose(y, _reference(query, key, value, bias, mask), atol=1e-5)
    assert not y[1, 1].any(), "a query that may see nothing gets nothing, not the mean of everything"


def test_a_query_that_sees_nothing_has_finite_gradients_and_leaks_nothing():
    mask = jnp.zeros((2, 1, 3, 5), bool)
    gradients = jax.grad(lambda args: jnp.sum(_attend(*args, mask=mask)))(_inputs())
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def test_probabilities_are_dropped_and_scaled():
    query, key, _ = _inputs(queries=200, keys=200)
    value = jnp.ones((2, 200, 4, 8))
    y = _attend(query, key, value, rate=jnp.float32(0.25), scale=0.0)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(y[..., 0].std()) == pytest.approx((0.25 / 0.75 / 200) ** 0.5, rel=0.1)


def test_nothing_to_mask_is_none():
    assert attention_mask(3, 4, causal=False) is None


def test_masks_are_predicates_of_place_and_segment():
    segments = np.array([[1, 1, 2, 0, 0]])
    seen = np.asarray(attention_mask(5, 5, causal=True, query_segments=segments, key_segments=segments))[0, 0]
    for q, k in np.ndindex(5, 5):
        assert bool(seen[q, k]) == (q >= k and segments[0, q] == segments[0, k]), (q, k)
    np.testing.assert_array_equal(attention_mask(3, 3, causal=True)[0, 0], np.tri(3, dtype=bool))


def test_a_missing_segment_id_is_segment_one():
    keys = jnp.array([[1, 1, 2, 0]])
    seen = attention_mask(2, 4, causal=False, key_segments=keys)
    np.testing.assert_array_equal(seen[0, 0], [[True, True, False, False]] * 2)
    seen = attention_mask(4, 2, causal=False, query_segments=keys)
    np.testing.assert_array_equal(seen[0, 0], [[True] * 2, [True] * 2, [False] * 2, [False] * 2])
