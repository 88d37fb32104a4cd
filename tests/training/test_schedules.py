"""Schedules against their closed forms, alone and joined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.config import DropoutRates
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.schedules import SCHEDULES, learning_rate


def rates(steps: int, **fields) -> np.ndarray:
    """Returns the rates of updates 0 to `steps`, the last of which a run of `steps` never makes."""
    config = OptimizerConfig(learning_rate=1.0, **fields)
    h = Hyperparameters.build(config, steps=steps, dropout=DropoutRates(), loss_weights={})
    return np.array(jax.jit(jax.vmap(lambda i: learning_rate(config, h, i)))(jnp.arange(steps + 1)))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_in_equal_steps_and_reaches_the_peak(schedule):
    found = rates(12, schedule=schedule, warmup_steps=4, final_ratio=0.1)
    np.testing.assert_allclose(found[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)


PROGRESS = (np.arange(11) - 2).clip(0) / 8


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule": "constant"}, np.ones(11)),
        ({"schedule": "linear"}, 0.2 + 0.8 * (1 - PROGRESS)),
        ({"schedule": "cosine"}, 0.2 + 0.8 * 0.5 * (1 + np.cos(np.pi * PROGRESS))),
        ({"schedule": "polynomial", "power": 3.0}, 0.2 + 0.8 * (1 - PROGRESS) ** 3),
        ({"schedule": "rsqrt"}, np.sqrt(2 / np.maximum(np.arange(11) + 1, 2))),
        (
            {"schedule": "wsd", "cooldown": 0.5, "cooldown_shape": "linear"},
            0.2 + 0.8 * (1 - (2 * PROGRESS - 1).clip(0)),
        ),
        ({"schedule": "wsd", "cooldown": 0.5}, 0.2 + 0.8 * (1 - np.sqrt((2 * PROGRESS - 1).clip(0)))),
    ],
    ids=lambda x: x["schedule"] if isinstance(x, dict) else "",
)
def test_schedules_are_their_closed_forms(fields, expected):
    """Down to the ratio at the end, where the form has an end."""
    found = rates(10, warmup_steps=2, final_ratio=0.2, **fields)
    expected = expected * np.minimum((np.arange(11) + 1) / 2, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_joined_schedules_take_over_where_the_one_before_left_off():
    shares = {"schedule": "joined", "schedules": ("rsqrt", "linear"), "shares": (3, 1)}
    found = rates(24, warmup_steps=4, final_ratio=0.1, **shares)
    expected = np.sqrt(4 / np.maximum(np.arange(25) + 1, 4))
    start = np.sqrt(4 / 19)  # 15 of the 20 steps after the warm-up are the first schedule's
    expected[19:] = start + (0.1 - start) * np.arange(6) / 5
    np.testing.assert_allclose(found[4:], expected[4:], rtol=1e-5)


def test_a_constant_joined_to_a_cosine_is_its_fall_over_its_share():
    found = rates(40, schedule="joined", schedules=("constant", "cosine"), shares=(0.75, 0.25), final_ratio=0.0)
    np.testing.assert_allclose(found[:31], 1.0)
    np.testing.assert_allclose(found[30:], 0.5 * (1 + np.cos(np.pi * np.arange(11) / 10)), atol=1e-6)


def test_the_end_of_a_schedule_is_a_number():
    """A plan by the clock moves it, and must not compile anything."""
    config = OptimizerConfig(schedule="wsd")
    h = Hyperparameters.build(config, steps=100, dropout=DropoutRates(), loss_weights={})
    rate = jax.jit(lambda h: learning_rate(config, h, jnp.int32(90)))
    early, late = rate(h), rate(h.replace(total_steps=jnp.float32(1000)))
    assert early < late
    assert rate._cache_size() == 1
