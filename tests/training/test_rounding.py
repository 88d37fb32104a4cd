"""Stochastic rounding: the result is one of the two nearest bfloat16 numbers, and its mean is the number itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.training.rounding import add_updates, stochastic_round


@pytest.mark.parametrize("value", [1.001, -1.001, 3.3e-5, -2.7e8, 1e-39, 0.99999])
def test_it_is_a_neighbour_and_in_the_mean_the_number(value):
    found = np.asarray(stochastic_round(jnp.full(20_000, value), jax.random.key(0)), np.float64)
    x = np.float32(value)
    bits = x.view(np.uint32) & np.uint32(0xFFFF0000)
    below, above = bits.view(np.float32), (bits + np.uint32(0x10000)).view(np.float32)
    assert set(found.tolist()) == {float(below), float(above)}
    spacing = abs(float(above) - float(below))
    assert abs(found.mean() - float(x)) < 4 * spacing / 2 / 20_000**0.5


def test_what_bfloat16_can_say_stays_as_it_is():
    """Such as zeros, infinity and NaN; frozen parameters are also unchanged for this reason."""
    values = jnp.array([0.0, -0.0, 1.0, -3.5, jnp.inf, -jnp.inf, jnp.nan, 2.0**-126], jnp.float32)
    found = stochastic_round(jnp.tile(values, 100), jax.random.key(1)).astype(jnp.float32)
    np.testing.assert_array_equal(found, jnp.tile(values, 100))


def test_parameters_draw_apart_and_float32_is_added_to_exactly():
    params = {"a": jnp.ones(4000, jnp.bfloat16), "b": jnp.ones(4000, jnp.bfloat16), "c": jnp.ones(4)}
    updates = jax.tree.map(lambda x: jnp.full(x.shape, 2.0**-9, jnp.float32), params)
    found = jax.jit(add_updates)(params, updates, jax.random.key(0))
    assert [x.dtype for x in jax.tree.leaves(found)] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    np.testing.assert_array_equal(found["c"], np.float32(1 + 2.0**-9))
    assert 0.3 < float(jnp.mean(found["a"] == found["b"])) < 0.8, "both parameters were rounded with the same draw"
    again = add_updates(params, updates, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, again, found)
