"""R-Drop: the loss and the gradient of both passes, compared with numpy in float64; and who takes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import FlagError
from lmjax.objectives import r_drop
from lmjax.objectives.classification import Classification, ClassificationConfig
from lmjax.objectives.divergences import binary_divergence, class_divergence, squared_divergence, vocab_divergence
from lmjax.objectives.sums import Penalties
from lmjax.objectives.tagging import Tagging, TaggingConfig

ALPHA = 0.7


def reference(first, second, weights):
    """Returns the weighted sum of mean divergences, and its gradients for both logits, in float64."""
    logs = [np.asarray(x, np.float64) for x in (first, second)]
    p, q = logs = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logs]
    one, two = np.exp(p), np.exp(q)
    forth, back = ((x * (y - z)).sum(-1) for x, y, z in ((one, p, q), (two, q, p)))
    value = (weights * (forth + back) / 2).sum()
    gradients = [
        weights[..., None] * (x * (y - z - kl[..., None]) + x - w) / 2
        for x, w, y, z, kl in ((one, two, p, q, forth), (two, one, q, p, back))
    ]
    return value, gradients


@pytest.fixture(scope="module")
def case():
    """Logits of two passes for 3 rows of 10 predictions of 7 classes, and weights, some of them 0."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 3, 10, 7)).astype(np.float32) * 2
    return first, second, (rng.integers(0, 3, (3, 10)) * rng.random((3, 10))).astype(np.float32)


def test_the_divergence_and_its_gradients_are_those_in_float64(case):
    first, second, weights = case
    value, gradients = jax.value_and_grad(class_divergence, (0, 1))(first, second, weights)
    expected, wanted = reference(*case)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, want, atol=1e-5)
    assert class_divergence(second, first, weights) == pytest.approx(float(value), rel=1e-6), "it is not symmetric"
    assert class_divergence(first, first, weights) == 0


def test_positions_without_weight_count_nothing_whatever_stands_there(case):
    first, second, weights = case
    broken = [np.where(weights[..., None] > 0, x, np.nan) for x in (first, second)]
    value, gradients = jax.value_and_grad(class_divergence, (0, 1))(*broken, weights)
    np.testing.assert_allclose(value, reference(*case)[0], rtol=1e-5)
    assert all(np.isfinite(g).all() and not g[weights == 0].any() for g in gradients)


def test_several_sets_of_weights_give_a_sum_each(case):
    first, second, weights = case
    parts = np.stack([weights, weights[::-1]], axis=-1)
    found = class_divergence(first, second, parts)
    np.testing.assert_allclose(found, [reference(first, second, w)[0] for w in (weights, weights[::-1])], rtol=1e-5)


@pytest.mark.parametrize("chunk", [0, 3, 10])
def test_chunks_of_the_vocabulary_change_nothing(case, chunk):
    first, second, weights = case
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(7, 11)).astype(np.float32)

    def value(first, second):
        return vocab_divergence(first, second, (lambda h: h @ kernel,) * 2, weights, chunk=chunk)

    found, gradients = jax.jit(jax.value_and_grad(value, (0, 1)))(first, second)
    expected, wanted = reference(first @ kernel, second @ kernel, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for gradient, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, want @ kernel.T, rtol=1e-3, atol=1e-3)


def test_binary_predictions_are_distributions_of_two_classes(case):
    """A label with the log odds x is the softmax over 0 and x; the labels of a row are averaged."""
    first, second = (x[0] for x in case[:2])
    weights, factors = case[2][0], np.arange(1, 8, dtype=np.float32)
    pairs = [np.stack([np.zeros_like(x), x], axis=-1) for x in (first, second)]
    own = weights[:, None] * factors
    np.testing.assert_allclose(binary_divergence(first, second, own), reference(*pairs, own / 7)[0], rtol=1e-5)
    whole = np.broadcast_to(weights[:, None], first.shape)
    np.testing.assert_allclose(binary_divergence(first, second, weights), reference(*pairs, whole / 7)[0], rtol=1e-5)


def test_numbers_have_the_squared_difference(case):
    first, second, weights = (x[0] for x in case)
    expected = (weights * np.square(first.astype(np.float64) - second).mean(-1)).sum()
    np.testing.assert_allclose(squared_divergence(first, second, weights), expected, rtol=1e-5)


def tagger(forward_of, tokenizer, first, second, weights, labels, alpha=ALPHA):
    """Returns the loss sums of a tagger that gives these logits in its two passes, and its forward pass."""
    task = Tagging(TaggingConfig(labels=tuple("abcdefg")), tokenizer, "encoder", 16, 16, 0)
    batch = {"labels": labels, "label_weights": weights}
    passed = forward_of(batch, states=first, tagger=lambda h: h)
    passed.second = second - first
    passed.penalties = Penalties(r_drop=None if alpha is None else jnp.float32(alpha))
    return r_drop.losses(task, passed, batch)["tagging"], passed


def test_a_loss_is_the_mean_of_both_passes_and_half_of_alpha_times_the_divergence(case, forward_of, tokenizer):
    first, second, weights = case
    labels = np.random.default_rng(2).integers(7, size=weights.shape)
    found, passed = tagger(forward_of, tokenizer, first, second, weights, labels)

    def entropies(logits):
        logs = np.asarray(logits, np.float64)
        logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
        return -(weights * np.take_along_axis(logs, labels[..., None], -1)[..., 0]).sum()

    np.testing.assert_allclose(found.loss, (entropies(first) + entropies(second)) / 2, rtol=1e-5)
    np.testing.assert_allclose(found.penalty, ALPHA / 2 * reference(*case)[0], rtol=1e-5)
    np.testing.assert_allclose(found.weight, weights.sum(), rtol=1e-6)
    hits = [(weights * (logits.argmax(-1) == labels)).sum() for logits in (first, second)]
    np.testing.assert_allclose(found.correct, np.mean(hits), rtol=1e-5)
    assert [name for name, _ in passed.calls].count("states") == 2


def test_without_it_there_is_one_pass(case, forward_of, tokenizer):
    first, second, weights = case
    found, passed = tagger(forward_of, tokenizer, first, second, weights, np.zeros(weights.shape, int), alpha=None)
    assert [name for name, _ in passed.calls].count("states") == 1
    assert found.penalty == 0


@pytest.mark.parametrize("kind", ["single", "ordered", "multiple"])
def test_class_weights_multiply_the_divergence_too(case, forward_of, tokenizer, kind):
    first, second, weights = (x[0] for x in case)
    numbers = np.arange(10) % 7
    labels = np.eye(7, dtype=np.float32)[numbers] if kind == "multiple" else numbers
    batch, added = {"labels": labels, "label_weights": weights}, {}
    for name, factors in (("equal", ()), ("one", (1, 1, 1, 5, 1, 1, 1))):
        config = ClassificationConfig(kind=kind, labels=tuple("abcdefg"), class_weights=factors)
        task = Classification(config, tokenizer, "encoder", 16, 16, 0)
        passed = forward_of(batch, states=first[:, None], classifier=lambda h: h[:, 0])
        passed.second = (second - first)[:, None]
        passed.penalties = Penalties(r_drop=jnp.float32(2))
        added[name] = float(r_drop.losses(task, passed, batch)["classification"].penalty)
    rows = weights * (numbers == 3)
    if kind == "multiple":
        pairs = [np.stack([np.zeros_like(x), x], axis=-1)[:, 3] for x in (first, second)]
        more = reference(*pairs, rows / 7)[0]
    else:
        more = reference(first, second, rows)[0]
    assert more > 0
    assert added["one"] - added["equal"] == pytest.approx(4 * more, rel=1e-3)


def test_a_model_without_dropout_is_refused(tiny):
    off = {"model__dropout__residual": 0, "model__dropout__attention": 0}
    with pytest.raises(FlagError, match=r"task.r_drop=1.0: both passes are equal without dropout; set a rate"):
        tiny("classification", task__r_drop=1, **off)
    tiny("classification", task__r_drop=1, **off | {"model__dropout__layer": 0.1})
