"""Averages of parameters against float64 references written from the papers."""

import numpy as np
import pytest

from lmjax.model.averages import greedy_soup, spherical, task_vectors, weighted


def models(count, seed=0):
    rng = np.random.default_rng(seed)
    return [{"a": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=5).astype(np.float32)}
            for _ in range(count)]  # fmt: skip


def test_a_weighted_average_divides_by_the_sum_of_the_weights():
    found = models(3)
    result = weighted(found, [1, 2, 5])
    for path in ("a", "b"):
        expected = sum(w * m[path].astype(np.float64) for w, m in zip((1, 2, 5), found, strict=True)) / 8
        np.testing.assert_allclose(result[path], expected, rtol=1e-6)
        assert result[path].dtype == np.float32
    same = weighted([found[0]] * 2, [0.3, 0.7])
    np.testing.assert_allclose(same["a"], found[0]["a"], rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_spherical_average_keeps_the_angle_and_the_length(share):
    one, other = models(2)
    # Of vectors of one length, every point of the arc has that length, and the angle grows with the share.
    other = {path: x * np.linalg.norm(one[path]) / np.linalg.norm(x) for path, x in other.items()}
    for path, x in spherical(one, other, share).items():
        a, b, c = (y.astype(np.float64).ravel() for y in (one[path], other[path], x))
        length = np.linalg.norm(a)
        np.testing.assert_allclose(np.linalg.norm(c), length, rtol=1e-5)
        angle, whole = (np.arccos(np.clip(a @ y / length**2, -1, 1)) for y in (c, b))
        np.testing.assert_allclose(angle, share * whole, atol=2e-3)
    np.testing.assert_allclose(spherical(one, one, share)["a"], one["a"], rtol=1e-6)
    zero = {"a": np.zeros(3, np.float32)}
    np.testing.assert_array_equal(spherical(zero, {"a": np.ones(3, np.float32)}, 0.5)["a"], [0.5] * 3)


def test_task_vectors_are_added_to_the_base_and_subtracted():
    base, one, other = models(3)
    result = task_vectors(base, [one, other], [0.5, -1.5])
    for path, x in result.items():
        b, o, p = (y[path].astype(np.float64) for y in (base, one, other))
        np.testing.assert_allclose(x, b + 0.5 * (o - b) - 1.5 * (p - b), rtol=1e-5, atol=1e-6)
    head = task_vectors({"a": base["a"]}, [one, other], [1.0, 1.0])
    np.testing.assert_allclose(head["b"], (one["b"] + other["b"]) / 2, rtol=1e-6)


def test_the_greedy_soup_takes_what_does_not_make_it_worse():
    numbers = [5.0, 1.0, -1.5, 9.0]
    taken, costs = greedy_soup(numbers, lambda some: sum(some) / len(some), abs)
    assert costs == [5.0, 1.0, 1.5, 9.0]
    # 1 is the best alone; with -1.5 the mean is -0.25, which is better; 5 or 9 would make it worse.
    assert taken == [1, 2]
    assert greedy_soup([2.0, 2.0], lambda some: sum(some) / len(some), abs)[0] == [0, 1], "an equal cost is no worse"
