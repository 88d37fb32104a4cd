"""Divergences from a teacher against float64 references: value, gradient, temperature, and the direction."""

import jax
import numpy as np
import pytest

from lmjax.objectives.divergences import (
    Measure,
    binary_divergence,
    class_divergence,
    recorded_divergence,
    vocab_divergence,
)

KINDS = ("symmetric", "forward", "reverse", "js")


def value(kind, heat, student, teacher, weights):
    """Returns the weighted sum of divergences in float64."""
    p, q = (np.exp(np.asarray(x, np.float64) / heat) for x in (student, teacher))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    kl = lambda a, b: (a * np.log(a / b)).sum(-1)  # noqa: E731
    middle = (p + q) / 2
    found = {"symmetric": (kl(p, q) + kl(q, p)) / 2, "forward": kl(q, p), "reverse": kl(p, q),
             "js": (kl(p, middle) + kl(q, middle)) / 2}[kind]  # fmt: skip
    return (weights * found).sum() * heat**2


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    student, teacher = 2 * rng.normal(size=(2, 3, 5, 7)).astype(np.float32)
    return student, teacher, (rng.integers(0, 3, (3, 5)) * rng.random((3, 5))).astype(np.float32)


@pytest.mark.parametrize("heat", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_in_float64(case, kind, heat):
    student, teacher, weights = case
    measure = Measure(kind, heat)
    found, gradient = jax.value_and_grad(class_divergence)(student, teacher, weights, measure)
    np.testing.assert_allclose(found, value(kind, heat, *case), rtol=1e-5)
    for at in [(0, 1, 2), (2, 4, 0), (1, 0, 6)]:
        step = np.zeros(student.shape)
        step[at] = 1e-5
        slope = (
            value(kind, heat, student + step, teacher, weights) - value(kind, heat, student - step, teacher, weights)
        ) / 2e-5
        np.testing.assert_allclose(gradient[at], slope, atol=1e-4)
    assert class_divergence(teacher, teacher, weights, measure) == pytest.approx(0, abs=1e-5)


def test_the_forward_divergence_is_cross_entropy_of_the_teacher_up_to_a_constant(case):
    """Its gradient is softmax(student) - softmax(teacher): that of soft targets (Hinton et al. 2015, equation 2)."""
    student, teacher, weights = case
    gradient = jax.grad(class_divergence)(student, teacher, weights, Measure("forward"))
    p, q = (np.exp(x.astype(np.float64)) for x in (student, teacher))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    np.testing.assert_allclose(gradient, weights[..., None] * (p - q), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_distributions_of_two_classes(case, kind):
    student, teacher, weights = (x[0] for x in case)
    pairs = [np.stack([np.zeros_like(x), x], axis=-1) for x in (student, teacher)]
    whole = np.broadcast_to(weights[:, None], student.shape) / student.shape[-1]
    found = binary_divergence(student, teacher, weights, Measure(kind, 2.0))
    np.testing.assert_allclose(found, value(kind, 2.0, *pairs, whole), rtol=1e-5)


@pytest.mark.parametrize("chunk", [0, 2])
def test_models_of_other_widths_and_padded_tables_are_compared(case, chunk):
    student, _, weights = case
    rng = np.random.default_rng(1)
    wide = rng.normal(size=(3, 5, 4)).astype(np.float32)
    heads = [rng.normal(size=shape).astype(np.float32) for shape in ((7, 11), (4, 9))]
    found = vocab_divergence(student, wide, tuple(lambda h, k=k: h @ k for k in heads), weights, chunk=chunk,
                             measure=Measure("forward", 2.0))  # fmt: skip
    np.testing.assert_allclose(found, value("forward", 2.0, (student @ heads[0])[..., :9], wide @ heads[1], weights),
                               rtol=1e-4)  # fmt: skip


@pytest.mark.parametrize("k", [2, 6])
@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_the_likeliest_tokens_and_any_other_are_outcomes(case, kind, chunk, k):
    """With all tokens but one it is the whole divergence; with fewer, that of fewer outcomes, which is no larger."""
    student, teacher, weights = case
    heat, kernel = 2.0, np.random.default_rng(1).normal(size=(7, 7)).astype(np.float32)
    logs = teacher.astype(np.float64) / heat
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    ids = np.argsort(-logs, axis=-1)[..., :k]
    recorded = (ids.astype(np.int32), np.take_along_axis(logs, ids, -1).astype(np.float32))
    found = recorded_divergence(student, lambda h: h @ kernel, recorded, weights, chunk=chunk,
                                measure=Measure(kind, heat))  # fmt: skip
    whole = value(kind, heat, student @ kernel, teacher, weights)

    def outcomes(x):
        probabilities = np.exp(np.asarray(x, np.float64) / heat)
        probabilities /= probabilities.sum(-1, keepdims=True)
        kept = np.take_along_axis(probabilities, ids, -1)
        return np.log(np.concatenate([kept, 1 - kept.sum(-1, keepdims=True)], -1))

    expected = heat**2 * value(kind, 1.0, outcomes(student @ kernel), outcomes(teacher), weights)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    if k == 6:
        np.testing.assert_allclose(found, whole, rtol=1e-4)
    else:
        assert found < whole
