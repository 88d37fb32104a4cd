"""Loss sums and their gradients, compared with numpy in float64, with chunks, weights and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.objectives.losses import binary_loss, class_loss, vocab_loss
from lmjax.objectives.sums import Penalties

class_sums = jax.jit(class_loss)
BATCH, LENGTH, EMBED, VOCAB = 3, 10, 5, 11


def reference(hidden, kernel, targets, weights):
    """Returns (loss, weight, correct) and the gradients for hidden and kernel, in float64."""
    hidden, kernel, weights = (np.asarray(x, np.float64) for x in (hidden, kernel, weights))
    logits = hidden @ kernel
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    one_hot = np.eye(kernel.shape[1])[targets]
    loss = -(weights * np.log((p * one_hot).sum(-1))).sum()
    correct = (weights * (logits.argmax(-1) == targets)).sum()
    d_logits = weights[..., None] * (p - one_hot)
    d_kernel = np.einsum("ble,blv->ev", hidden, d_logits)
    return (loss, weights.sum(), correct), (d_logits @ kernel.T, d_kernel)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(BATCH, LENGTH, EMBED)).astype(np.float32)
    kernel = rng.normal(size=(EMBED, VOCAB)).astype(np.float32)
    targets = rng.integers(VOCAB, size=(BATCH, LENGTH)).astype(np.int32)
    weights = (rng.random((BATCH, LENGTH)) < 0.7).astype(np.float32)
    return hidden, kernel, targets, weights


def sums_and_gradients(hidden, kernel, targets, weights, chunk):
    def loss(hidden, kernel):
        sums = vocab_loss(hidden, lambda h: h @ kernel, targets, weights, chunk=chunk)
        return sums.loss, sums

    (_, sums), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, kernel)
    return (sums.loss, sums.weight, sums.correct), gradients


@pytest.mark.parametrize("chunk", [0, 5, 4, 1, LENGTH, 2 * LENGTH])
def test_vocabulary_loss_is_the_float64_sum_whatever_the_chunk(case, chunk):
    sums, gradients = sums_and_gradients(*case, chunk)
    expected_sums, expected_gradients = reference(*case)
    np.testing.assert_allclose(sums, expected_sums, rtol=1e-5)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_fractional_weights_scale_the_loss(case):
    hidden, kernel, targets, weights = case
    weights = weights * np.linspace(0.1, 3, LENGTH, dtype=np.float32)
    sums, gradients = sums_and_gradients(hidden, kernel, targets, weights, 4)
    expected_sums, expected_gradients = reference(hidden, kernel, targets, weights)
    np.testing.assert_allclose(sums, expected_sums, rtol=1e-5)
    np.testing.assert_allclose(gradients[1], expected_gradients[1], rtol=1e-4, atol=1e-5)


def test_chunks_bound_the_logits_that_exist(case):
    hidden, kernel, targets, weights = case
    seen = []

    def head(h):
        seen.append(h.shape)
        return h @ kernel

    jax.eval_shape(lambda: vocab_loss(hidden, head, targets, weights, chunk=4))
    assert set(seen) == {(BATCH, 4, EMBED)}, "the head got more positions at once than a chunk has"


@jax.jit
def class_loss_and_gradient(logits, targets, weights):
    def loss(x):
        sums = class_loss(x, targets, weights)
        return sums.loss, sums

    return jax.value_and_grad(loss, has_aux=True)(logits)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_positions_without_weight_add_nothing_whatever_their_logits_hold(bad):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4, VOCAB)).astype(np.float32)
    targets = rng.integers(VOCAB, size=4).astype(np.int32)
    weights = np.array([1, 0, 1, 0], np.float32)
    poisoned = logits.copy()
    poisoned[1], poisoned[3, 0] = bad, bad
    (_, expected_sums), expected_gradient = class_loss_and_gradient(logits, targets, weights)
    (_, sums), gradient = class_loss_and_gradient(poisoned, targets, weights)
    assert (sums.loss, sums.weight, sums.correct) == (expected_sums.loss, 2, expected_sums.correct)
    np.testing.assert_array_equal(gradient, expected_gradient)
    np.testing.assert_array_equal(gradient[1], 0)


def test_logits_in_bfloat16_are_summed_in_float32():
    logits = jnp.zeros((1, 3000, 4), jnp.bfloat16)
    sums = class_sums(logits, jnp.zeros((1, 3000), jnp.int32), jnp.ones((1, 3000), jnp.float32))
    assert sums.loss.dtype == jnp.float32
    np.testing.assert_allclose(sums.loss, 3000 * np.log(4), rtol=1e-5)


def test_large_logits_do_not_overflow():
    sums = class_sums(jnp.array([[1e4, 0.0]]), jnp.array([1]), jnp.ones(1))
    assert sums.loss == 1e4


def test_sums_of_the_parts_are_the_sum_of_the_whole(case):
    hidden, kernel, targets, weights = case
    whole = class_sums(hidden @ kernel, targets, weights)
    parts = [class_sums(hidden[s] @ kernel, targets[s], weights[s]) for s in (slice(0, 1), slice(1, 3))]
    total = parts[0] + parts[1]
    np.testing.assert_allclose(jax.tree.leaves(total), jax.tree.leaves(whole), rtol=1e-6)


def test_rows_of_padding_add_nothing(case):
    hidden, kernel, targets, weights = case
    padded = [np.concatenate([x, np.zeros_like(x[:2])]) for x in (hidden, targets, weights)]
    sums, gradients = sums_and_gradients(padded[0], kernel, *padded[1:], 4)
    expected, expected_gradients = sums_and_gradients(hidden, kernel, targets, weights, 4)
    np.testing.assert_allclose(sums, expected, rtol=1e-6)
    np.testing.assert_allclose(gradients[1], expected_gradients[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(VOCAB,), (7, VOCAB), (2, 3, VOCAB)])
def test_a_prediction_is_correct_where_the_target_is_the_argmax(shape):
    """With ties, which coarse logits often have: a model with equal logits must not count as correct everywhere."""
    coarse = np.random.default_rng(4).integers(0, 3, shape).astype(np.float32)
    for logits in (coarse, np.zeros(shape, np.float32), np.full(shape, -np.inf, np.float32)):
        for target in range(VOCAB):
            targets, ones = np.full(shape[:-1], target), np.ones(shape[:-1], np.float32)
            expected = (logits.argmax(-1) == target).sum()
            assert class_sums(jnp.asarray(logits), targets, ones).correct == expected
            yes = binary_loss(jnp.asarray(logits[..., 0]), targets > 0, ones)
            assert yes.correct == ((logits[..., 0] > 0) == (target > 0)).sum()


@pytest.mark.parametrize("chunk", [0, 4])
def test_rows_that_no_token_has_get_no_share_of_a_smoothed_target(case, chunk):
    """The gradient of label smoothing alone at the logits is the softmax minus the smoothed target."""
    hidden, kernel, targets, weights = case
    s, ids = 0.2, VOCAB - 3
    targets = targets % ids

    def total(x):
        penalties = Penalties(None, jnp.float32(s))
        found = vocab_loss(x, lambda h: h, targets, weights, chunk=chunk, penalties=penalties, num_ids=ids)
        return found.loss + found.penalty

    logits = jnp.asarray(hidden @ kernel)
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    goal = (1 - s) * np.eye(VOCAB)[targets] + s / ids * (np.arange(VOCAB) < ids)
    np.testing.assert_allclose(jax.grad(total)(logits), weights[..., None] * (p - goal), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [0, 4])
def test_parts_have_the_sums_that_each_has_alone(case, chunk):
    """Mixed objectives share one pass over the logits."""
    hidden, kernel, targets, weights = case
    shares = np.random.default_rng(2).integers(0, 3, weights.shape)
    parts = np.stack([weights * (shares == i) for i in range(3)], axis=-1)
    together = jax.jit(lambda h, w: vocab_loss(h, lambda x: x @ kernel, targets, w, chunk=chunk))(hidden, parts)
    for i in range(3):
        alone, _ = reference(hidden, kernel, targets, parts[..., i])
        np.testing.assert_allclose([together.loss[i], together.weight[i], together.correct[i]], alone, rtol=1e-5)


@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize("penalties", [(0.1, None), (None, 0.2), (0.1, 0.2)])
def test_penalties_are_those_of_the_papers(case, penalties, chunk):
    """PaLM's z-loss is z * log(Z)^2; a smoothed target is (1 - s) * one-hot + s / classes; gradients too."""
    hidden, kernel, targets, weights = case
    z, s = (p or 0.0 for p in penalties)

    def total(h):
        sums = vocab_loss(h, lambda x: x @ kernel, targets, weights, chunk=chunk, penalties=Penalties(*penalties))
        return sums.loss + sums.penalty, sums

    (value, sums), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(hidden)
    logits = hidden.astype(np.float64) @ kernel.astype(np.float64)
    log_z = np.log(np.exp(logits).sum(-1, keepdims=True))
    goal = (1 - s) * np.eye(VOCAB)[targets] + s / VOCAB
    losses = -(goal * (logits - log_z)).sum(-1) + z * log_z[..., 0] ** 2
    np.testing.assert_allclose(value, (weights * losses).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.loss, reference(hidden, kernel, targets, weights)[0][0], rtol=1e-5)
    p = np.exp(logits - log_z)
    d_logits = weights[..., None] * (p - goal + 2 * z * log_z * p)
    np.testing.assert_allclose(gradient, d_logits @ kernel.T, rtol=1e-4, atol=1e-5)


def test_penalties_leave_positions_without_weight_out():
    logits = jnp.full((2, VOCAB), jnp.nan).at[0].set(0.0)
    targets, weights = jnp.zeros(2, jnp.int32), jnp.array([1.0, 0.0])

    def total(x):
        sums = class_loss(x, targets, weights, Penalties(jnp.float32(0.1), jnp.float32(0.1)))
        return sums.loss + sums.penalty

    value, gradient = jax.value_and_grad(total)(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert not gradient[1].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_binary_loss_is_the_cross_entropy_of_two_classes(bad):
    logits = jnp.array([2.0, -1.0, 0.5, bad])
    targets = jnp.array([True, True, False, True])
    weights = jnp.array([1.0, 2.0, 1.0, 0.0])
    (_, sums), gradient = jax.value_and_grad(
        lambda x: (binary_loss(x, targets, weights).loss, binary_loss(x, targets, weights)), has_aux=True
    )(logits)
    both = class_sums(jnp.stack([jnp.zeros(3), logits[:3]], -1), targets[:3].astype(jnp.int32), weights[:3])
    for a, b in zip(jax.tree.leaves(sums), jax.tree.leaves(both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    p = 1 / (1 + np.exp(-np.asarray(logits[:3], np.float64)))
    np.testing.assert_allclose(gradient[:3], weights[:3] * (p - targets[:3]), rtol=1e-5)
    assert gradient[3] == 0
