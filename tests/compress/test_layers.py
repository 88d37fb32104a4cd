"""Calibrated quantisation against references in float64, and the error of the outputs below rounding to the nearest."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.compress.calibrate import Inputs
from lmjax.compress.factors import awq, smooth
from lmjax.compress.solve import DAMPING, gptq
from lmjax.model.layers import dot
from lmjax.model.quantized import QuantizationConfig, quantized


def inputs_of(x):
    x = np.asarray(x, np.float64)
    sizes = np.abs(x)
    return Inputs(x.T @ x, (x**2).sum(0), sizes.sum(0), sizes.max(0), np.array(float(len(x))))


@pytest.fixture(scope="module")
def case():
    """Inputs that depend on each other, some of them much larger than others, and a kernel."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(16, 16)) * np.where(np.arange(16) % 5 == 0, 12.0, 1.0)
    return rng.normal(size=(300, 16)) @ mix / 4, rng.normal(size=(16, 12))


def outputs_error(x, kernel, found):
    return np.square(x @ (np.asarray(found.astype("float32"), np.float64) - kernel)).sum()


def config_of(weights, group=0, **more):
    return QuantizationConfig(weights=weights, group=group, stored=True, **more)


def reference_gptq(kernel, products, group):
    """Optimal brain quantisation in a fixed order; the inverse of H of the inputs that are left is made anew."""
    h = products + DAMPING * np.mean(np.diag(products)) * np.eye(len(products))
    left, found = kernel.copy(), np.empty_like(kernel)
    for i in range(len(kernel)):
        if i % group == 0:
            scale = np.abs(left[i : i + group]).max(0) / 7
        found[i] = np.clip(np.round(left[i] / scale), -7, 7) * scale
        inverse = np.linalg.inv(h[i:, i:])
        left[i + 1 :] -= np.outer(inverse[1:, 0] / inverse[0, 0], left[i] - found[i])
    return found


@pytest.mark.parametrize("group", [0, 8, 4])
def test_gptq_is_optimal_brain_quantisation_in_the_order_of_the_inputs(case, group, monkeypatch):
    x, kernel = case
    monkeypatch.setattr("lmjax.compress.solve._BLOCK", 8)
    found = gptq(kernel, x.T @ x, config_of("int4", group), kernel.shape)
    expected = reference_gptq(kernel, x.T @ x, group or 16)
    np.testing.assert_allclose(found.astype("float32"), expected, atol=1e-5)
    nearest = quantized(jnp.asarray(kernel, "float32"), (0,), config_of("int4", group))
    assert outputs_error(x, kernel, found) < 0.85 * outputs_error(x, kernel, nearest)


def test_gptq_keeps_the_numbers_of_an_input_that_is_always_zero(case):
    x, kernel = case
    x = x * (np.arange(16) != 3)
    found = gptq(kernel, x.T @ x, config_of("int8"), kernel.shape)
    np.testing.assert_allclose(np.asarray(found.astype("float32"))[3], kernel[3], atol=0.05)


def reference_awq(kernel, x, group):
    """The least error over the grid of strengths, by the inputs themselves."""
    best, chosen = np.inf, None
    for strength in np.linspace(0, 1, 11)[:-1]:
        s = np.abs(x).mean(0) ** strength
        s /= np.sqrt(s.max() * s.min())
        scaled = kernel * s[:, None]
        groups = scaled.reshape(-1, group, kernel.shape[1])
        scale = np.abs(groups).max(1, keepdims=True) / 7
        found = (np.round(groups / scale) * scale).reshape(kernel.shape) / s[:, None]
        error = np.square(x @ (found - kernel)).sum()
        if error < best:
            best, chosen = error, found
    return chosen


@pytest.mark.parametrize("group", [16, 4])
def test_awq_takes_the_factors_of_least_error(case, group):
    x, kernel = case
    found = awq(jnp.asarray(kernel, "float32"), (0,), inputs_of(x), config_of("int4", group, factors=True))
    np.testing.assert_allclose(found.astype("float32"), reference_awq(kernel, x, group), atol=1e-4)
    nearest = quantized(jnp.asarray(kernel, "float32"), (0,), config_of("int4", group))
    assert outputs_error(x, kernel, found) < 0.9 * outputs_error(x, kernel, nearest)


def test_awq_of_inputs_in_another_order(case):
    """With one scale for an output the order of the inputs is nothing; with groups it says which share a scale."""
    x, kernel = case
    order = np.random.default_rng(3).permutation(16)

    def found(config, order=slice(None)):
        made = awq(jnp.asarray(kernel[order], "float32"), (0,), inputs_of(x[:, order]), config)
        return np.asarray(made.astype("float32"), np.float64)

    alone = config_of("int4", 0, factors=True)
    np.testing.assert_allclose(found(alone, order), found(alone)[order], atol=1e-5)
    grouped = config_of("int4", 4, factors=True)
    assert np.abs(found(grouped, order) - found(grouped)[order]).max() > 0.05
    np.testing.assert_allclose(found(grouped, order), reference_awq(kernel[order], x[:, order], 4), atol=1e-4)


@pytest.mark.parametrize(("form", "group"), [("int4", 4), ("nf4", 0), ("fp8", 8)])
def test_awq_never_loses_to_rounding_on_the_texts_it_read(form, group):
    """A strength of 0 is rounding: also where inputs are zero, alike, or fewer than the kernel has."""
    rng = np.random.default_rng(2)
    config = config_of(form, group, factors=True)
    for spread in (np.ones(16), np.arange(16) % 7 > 2, 30.0 ** rng.normal(size=16)):
        x, kernel = rng.normal(0.5, 1.0, size=(9, 16)) * spread, rng.standard_t(3, size=(16, 6))
        found = awq(jnp.asarray(kernel, "float32"), (0,), inputs_of(x), config)
        nearest = quantized(jnp.asarray(kernel, "float32"), (0,), config_of(form, group))
        assert outputs_error(x, kernel, found) <= outputs_error(x, kernel, nearest) * (1 + 1e-4)


def test_smoothquant_moves_outliers_from_the_inputs_to_the_kernel(case):
    x, kernel = case
    x = x * np.where(np.arange(16) == 2, 40.0, 1.0)
    config = config_of("int8", activations="int8", factors=True)
    found = smooth(jnp.asarray(kernel, "float32"), (0,), inputs_of(x), config)
    s = np.sqrt(np.abs(x).max(0) / np.abs(kernel).max(1))
    factors = 1 / s / np.sqrt((1 / s).max() * (1 / s).min())
    np.testing.assert_allclose(found.factors, factors, rtol=1e-5)

    def rounded(a, axis):
        scale = np.abs(a).max(axis, keepdims=True) / 127
        return np.round(a / scale) * scale

    given = jnp.asarray(x, "float32")
    expected = rounded(x * factors, 1) @ rounded(kernel / factors[:, None], 0)
    y = np.asarray(dot(given, found), np.float64)
    np.testing.assert_allclose(y, expected, atol=0.02 * np.abs(expected).max())
    plain = quantized(jnp.asarray(kernel, "float32"), (0,), config_of("int8", activations="int8"))
    errors = [np.square(np.asarray(dot(given, k), np.float64) - x @ kernel).sum() for k in (found, plain)]
    assert errors[0] < 0.5 * errors[1]
