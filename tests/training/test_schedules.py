"""Schedules, alone and joined, compared with their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.dropout import DropoutRates
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.schedules import SCHEDULES
from lmjax.training.update import learning_rate


def rates(steps: int, **fields) -> np.ndarray:
    """Returns the learning rates of all updates of a run of `steps`; the peak is 1 by default."""
    config = OptimizerConfig(**({"learning_rate": 1.0} | fields))
    h = Hyperparameters.build(config, steps=steps, dropout=DropoutRates(), loss_weights={})
    return np.array(jax.jit(jax.vmap(lambda i: learning_rate(config, h, i)))(jnp.arange(steps)))


def last_of_twelve(schedule: str, warmup: int, final_ratio: float) -> np.float32:
    """Returns the last rate over the peak; the constant and the 1 / sqrt schedule do not fall to `final_ratio`."""
    return np.float32({"constant": 1.0, "rsqrt": np.sqrt(np.float32(warmup / 12))}.get(schedule, final_ratio))


@pytest.mark.parametrize("learning_rate", [1.0, 3e-4])
@pytest.mark.parametrize("final_ratio", [0.0, 0.1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_first_peak_and_last_are_exact(schedule, final_ratio, learning_rate):
    peak = np.float32(learning_rate)
    found = rates(12, schedule=schedule, warmup_steps=4, final_ratio=final_ratio, learning_rate=learning_rate)
    assert found[:4].tolist() == [peak / 4, peak / 2, peak * np.float32(0.75), peak]
    assert found[-1] == peak * last_of_twelve(schedule, 4, final_ratio)
    assert found.max() == peak
    assert np.all(np.diff(found[3:]) <= 0)
    without = rates(12, schedule=schedule, final_ratio=final_ratio, learning_rate=learning_rate)
    assert without[0] == peak
    assert without[-1] == peak * last_of_twelve(schedule, 1, final_ratio)


@pytest.mark.parametrize("cooldown", [1e-3, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("shape", ["sqrt", "linear"])
def test_a_cooldown_of_any_length_ends_at_the_ratio(cooldown, shape):
    wsd = {"cooldown": cooldown, "cooldown_shape": shape}
    found = rates(10, schedule="wsd", wsd=wsd, final_ratio=0.1)
    assert (found[0], found[-1]) == (1.0, np.float32(0.1))
    assert np.sum(found == 1.0) == max(10 - round(9 * cooldown) - (cooldown < 0.1), 1)


@pytest.mark.parametrize("steps", [1, 2, 3, 1000, 99_999])
def test_runs_of_any_length_end_at_the_ratio(steps):
    fields = {
        "schedule": "joined",
        "joined": {"schedules": ("constant", "linear", "cosine"), "shares": (0.1, 0.2, 0.3)},
    }
    for found in (rates(steps, schedule="linear"), rates(steps, **fields), rates(steps, warmup_steps=None)):
        assert np.isfinite(found).all()
        assert found.max() == 1.0
        assert found[-1] == (np.float32(0.1) if steps > 1 else 1.0)


def test_a_warm_up_that_outlasts_the_run_is_all_of_it():
    np.testing.assert_array_equal(rates(4, warmup_steps=8, schedule="linear"), [0.125, 0.25, 0.375, 0.5])
    np.testing.assert_array_equal(rates(4, warmup_steps=4, schedule="cosine"), [0.25, 0.5, 0.75, 1.0])


def test_a_warm_up_that_is_left_to_the_run_grows_with_it_up_to_40():
    config = OptimizerConfig(warmup_steps=None)
    assert [config.warmup(steps) for steps in (1, 8, 40, 100, 600, 100_000)] == [0, 0, 4, 10, 40, 40]
    assert OptimizerConfig(warmup_steps=40).warmup(8) == 40
    assert rates(40, warmup_steps=None).argmax() == 3


PROGRESS = (np.arange(1, 11) - 2).clip(0) / 8


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule": "constant"}, np.ones(10)),
        ({"schedule": "linear"}, 0.2 + 0.8 * (1 - PROGRESS)),
        ({"schedule": "cosine"}, 0.2 + 0.8 * 0.5 * (1 + np.cos(np.pi * PROGRESS))),
        ({"schedule": "polynomial", "polynomial.power": 3.0}, 0.2 + 0.8 * (1 - PROGRESS) ** 3),
        ({"schedule": "rsqrt"}, np.sqrt(2 / np.maximum(np.arange(10) + 1, 2))),
        (
            {"schedule": "wsd", "wsd.cooldown": 0.5, "wsd.cooldown_shape": "linear"},
            0.2 + 0.8 * (1 - (2 * PROGRESS - 1).clip(0)),
        ),
        ({"schedule": "wsd", "wsd.cooldown": 0.5}, 0.2 + 0.8 * (1 - np.sqrt((2 * PROGRESS - 1).clip(0)))),
    ],
    ids=lambda x: x["schedule"] if isinstance(x, dict) else "",
)
def test_schedules_are_their_closed_forms(fields, expected):
    """At the last update the rate is `final_ratio` of the peak, if the schedule has an end."""
    found = rates(10, warmup_steps=2, final_ratio=0.2, **fields)
    np.testing.assert_allclose(found, expected * np.minimum((np.arange(10) + 1) / 2, 1), rtol=1e-5)


def test_joined_schedules_take_over_where_the_one_before_left_off():
    shares = {"schedule": "joined", "joined.schedules": ("rsqrt", "linear"), "joined.shares": (3, 1)}
    found = rates(24, warmup_steps=4, final_ratio=0.1, **shares)
    expected = np.sqrt(4 / np.maximum(np.arange(24) + 1, 4))
    start = np.sqrt(4 / 19)  # 15 of the 20 steps after the warm-up are the first schedule's
    expected[18:] = start + (0.1 - start) * np.arange(6) / 5
    np.testing.assert_allclose(found[4:], expected[4:], rtol=1e-5)


def test_a_constant_joined_to_a_cosine_is_its_fall_over_its_share():
    joined = {"schedules": ("constant", "cosine"), "shares": (0.75, 0.25)}
    found = rates(41, schedule="joined", joined=joined, final_ratio=0.0)
    np.testing.assert_allclose(found[:31], 1.0)
    np.testing.assert_allclose(found[30:], 0.5 * (1 + np.cos(np.pi * np.arange(11) / 10)), atol=1e-6)


def test_the_end_of_a_schedule_is_a_number():
    """A plan for a time budget changes it, which must not need a compilation."""
    config = OptimizerConfig(schedule="wsd")
    h = Hyperparameters.build(config, steps=100, dropout=DropoutRates(), loss_weights={})
    rate = jax.jit(lambda h: learning_rate(config, h, jnp.int32(90)))
    early, late = rate(h), rate(h.replace(total_steps=jnp.float32(1000)))
    assert early < late
    assert rate._cache_size() == 1
