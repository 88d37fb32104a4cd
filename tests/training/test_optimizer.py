"""The optimizer against a float64 reference, the schedules against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.model.config import DropoutRates
from lmjax.training.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    Hyperparameters,
    OptimizerConfig,
    decay_mask,
    learning_rate,
    make_optimizer,
)


def numbers(config, steps=10):
    return Hyperparameters.build(config, steps=steps, dropout=DropoutRates(), loss_weights={})


def rates(config, steps):
    h = numbers(config, steps)
    return np.array([learning_rate(config, h, jnp.int32(i)) for i in range(steps + 1)])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_in_equal_steps_and_reaches_the_peak(schedule):
    config = OptimizerConfig(schedule=schedule, learning_rate=1.0, warmup_steps=4, final_ratio=0.1)
    np.testing.assert_allclose(rates(config, 12)[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("constant", 1.0, 1.0), ("linear", 0.6, 0.2), ("cosine", 0.6, 0.2)]
)
def test_schedules_pass_their_middle_and_end_at_the_ratio(schedule, middle, last):
    config = OptimizerConfig(schedule=schedule, learning_rate=1.0, warmup_steps=2, final_ratio=0.2)
    found = rates(config, 10)
    np.testing.assert_allclose([found[6], found[10]], [middle, last], rtol=1e-6)


def test_decay_leaves_biases_and_norm_scales_alone():
    params = {"a": {"kernel": 1, "bias": 2}, "norm": {"scale": 3}, "embedding": 4}
    assert decay_mask(params) == {"a": {"kernel": True, "bias": False}, "norm": {"scale": False}, "embedding": True}


def test_adamw_equals_its_definition_in_float64():
    config = OptimizerConfig(schedule="constant", learning_rate=0.1, weight_decay=0.2, clip_norm=0.5)
    h = numbers(config)
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])}
    state = make_optimizer(config, h, jnp.int32(0)).init(params)
    x = {k: np.asarray(v, np.float64) for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in x.items()}
    v = {k: np.zeros_like(v) for k, v in x.items()}
    rng = np.random.default_rng(0)
    for t in range(1, 6):
        raw = {"kernel": rng.normal(size=2), "bias": rng.normal(size=1)}
        grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), raw)
        updates, state = make_optimizer(config, h, jnp.int32(t - 1)).update(grads, state, params)
        params = optax.apply_updates(params, updates)
        norm = np.sqrt(sum((g**2).sum() for g in raw.values()))
        for k, g in raw.items():
            g = g * min(1, 0.5 / norm)
            m[k] = config.beta1 * m[k] + (1 - config.beta1) * g
            v[k] = config.beta2 * v[k] + (1 - config.beta2) * g**2
            step = (m[k] / (1 - config.beta1**t)) / (np.sqrt(v[k] / (1 - config.beta2**t)) + config.epsilon)
            x[k] -= 0.1 * (step + (0.2 * x[k] if k == "kernel" else 0))
    for k in x:
        np.testing.assert_allclose(params[k], x[k], rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimizer_depends_on_no_number(name):
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    shapes = [
        jax.eval_shape(make_optimizer(config, numbers(config), jnp.int32(0)).init, params)
        for config in (OptimizerConfig(name=name), OptimizerConfig(name=name, weight_decay=0.0, beta1=0.0))
    ]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
