"""Pruned numbers: which become zero, against references in float64, and what is lost of the outputs."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.compress.calibrate import Inputs
from lmjax.compress.solve import DAMPING
from lmjax.compress.zeros import Zeros, by_sparsegpt, by_wanda, kept_pairs, magnitude, share_of_zeros


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(16, 16)) * np.where(np.arange(16) % 5 == 0, 12.0, 1.0)
    return rng.normal(size=(300, 16)) @ mix / 4, rng.normal(size=(16, 12))


def inputs_of(x):
    sizes = np.abs(x)
    return Inputs(x.T @ x, (x**2).sum(0), sizes.sum(0), sizes.max(0), np.array(float(len(x))))


def kernels(rng, layers=2):
    shapes = {"attention/query": (8, 2, 4), "mlp/up": (8, 20), "mlp/down": (20, 8)}
    tree = {"embedding": {"table": jnp.asarray(rng.normal(size=(5, 8)), "float32")}, "backbone": {"stack": {}}}
    for i in range(layers):
        layer = tree["backbone"]["stack"][f"layer_{i}"] = {}
        for path, shape in shapes.items():
            branch, name = path.split("/")
            layer.setdefault(branch, {})[name] = {"kernel": jnp.asarray(rng.normal(size=shape) * (i + 1), "float32")}
    return tree


def test_the_smallest_numbers_of_each_kernel_or_of_all_become_zero():
    tree = kernels(np.random.default_rng(0))
    found = magnitude(tree, Zeros(0.25))
    assert share_of_zeros(found) == 0.25
    np.testing.assert_array_equal(found["embedding"]["table"], tree["embedding"]["table"])
    for i in range(2):
        x, y = (np.asarray(t["backbone"]["stack"][f"layer_{i}"]["mlp"]["up"]["kernel"]) for t in (tree, found))
        assert (y == 0).sum() == 40
        assert np.abs(x[y == 0]).max() <= np.abs(x[y != 0]).min()
        np.testing.assert_array_equal(y[y != 0], x[y != 0])
    whole = magnitude(tree, Zeros(0.25, scope="global"))
    counts = [
        sum(
            (np.asarray(m["kernel"]) == 0).sum()
            for b in whole["backbone"]["stack"][f"layer_{i}"].values()
            for m in b.values()
        )
        for i in range(2)
    ]
    assert counts[0] > 1.5 * counts[1], "the numbers of the first layer are half as large"
    assert sum(counts) == round(0.25 * 2 * (64 + 160 + 160))


def test_two_of_four_inputs_are_kept():
    rng = np.random.default_rng(0)
    masks = kept_pairs(scores := np.abs(rng.normal(size=(12, 7))))
    assert (masks.reshape(3, 4, 7).sum(1) == 2).all()
    for block, mask in zip(scores.reshape(3, 4, 7), masks.reshape(3, 4, 7), strict=True):
        assert (np.where(mask, block, np.inf).min(0) >= np.where(mask, 0, block).max(0)).all()


@pytest.mark.parametrize("pairs", [False, True])
def test_wanda_compares_numbers_times_the_norm_of_their_input_within_an_output(case, pairs):
    x, kernel = case
    found = np.asarray(by_wanda(Zeros(0.5, pairs))(jnp.asarray(kernel, "float32"), (0,), inputs_of(x)))
    scores = np.abs(kernel) * np.sqrt((x**2).sum(0))[:, None]
    fours = scores.reshape(4, 4, 12) if pairs else scores[None]
    median = np.sort(fours, axis=1)[:, fours.shape[1] // 2][:, None]
    np.testing.assert_allclose(found, np.where((fours >= median).reshape(kernel.shape), kernel, 0), atol=1e-6)


def reference_sparsegpt(kernel, products, zeros):
    """Optimal brain surgeon in the order of the inputs; the inverse of H of the inputs that are left is made anew."""
    h = products + DAMPING * np.mean(np.diag(products)) * np.eye(len(products))
    left, masks = kernel.copy(), None
    # What is left of the inverse of H when an input is decided, as in the papers' algorithms.
    gains = np.array([np.linalg.inv(h[i:, i:])[0, 0] for i in range(len(h))])
    for i in range(len(kernel)):
        if masks is None and not zeros.pairs:
            scores = left**2 / gains[:, None]
            masks = scores > np.sort(scores, axis=None)[scores.size // 2 - 1]
        if zeros.pairs and i % 4 == 0:
            scores = left[i : i + 4] ** 2 / gains[i : i + 4, None]
            chosen = scores >= np.sort(scores, axis=0)[2]
        mask = chosen[i % 4] if zeros.pairs else masks[i]
        inverse = np.linalg.inv(h[i:, i:])
        left[i + 1 :] -= np.outer(inverse[1:, 0] / inverse[0, 0], np.where(mask, 0, left[i]))
        left[i] = np.where(mask, left[i], 0)
    return left


@pytest.mark.parametrize("pairs", [False, True])
def test_sparsegpt_is_optimal_brain_surgeon_in_the_order_of_the_inputs(case, pairs):
    x, kernel = case
    zeros = Zeros(0.5, pairs)
    found = np.asarray(by_sparsegpt(zeros)(jnp.asarray(kernel, "float32"), (0,), inputs_of(x)), np.float64)
    np.testing.assert_allclose(found, reference_sparsegpt(kernel, x.T @ x, zeros), atol=1e-5)
    assert (found == 0).mean() == 0.5
    wanda = np.asarray(by_wanda(zeros)(jnp.asarray(kernel, "float32"), (0,), inputs_of(x)), np.float64)
    smallest = np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0, kernel)
    errors = [np.square(x @ (each - kernel)).sum() for each in (found, wanda, smallest)]
    assert errors[0] < 0.8 * errors[1]
    assert errors[1] < 0.9 * errors[2] or pairs
