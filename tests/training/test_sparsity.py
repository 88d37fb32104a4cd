"""Zeros of kernels stay exact zeros through training with every optimizer, and gradual pruning follows its schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.optimizers import OPTIMIZERS
from lmjax.training.optimizers.schedule_free import averaged_iterate
from lmjax.training.sparsity import wanted_share
from lmjax.training.update import make_optimizer

PATH = ("backbone", "stack", "layer_0", "mlp", "up", "kernel")


def tree_of(kernel, bias):
    found = {"kernel": kernel, "bias": bias}
    for name in reversed(PATH[:-1]):
        found = {name: found}
    return found


def of(tree, last="kernel"):
    for name in (*PATH[:-1], last):
        tree = tree[name]
    return tree


def trained(fields, steps, kernel):
    config = OptimizerConfig.model_validate({"learning_rate": 0.05, "schedule": "constant", **fields})
    h = Hyperparameters.build(config, steps=steps, dropout=None, loss_weights={})
    params = tree_of(jnp.asarray(kernel, "float32"), jnp.zeros(kernel.shape[1]))

    @jax.jit
    def step(params, state, i):
        grads = jax.tree.map(lambda p: jax.random.normal(jax.random.fold_in(jax.random.key(0), i), p.shape), params)
        optimizer = make_optimizer(config, h, i)
        updates, state = optimizer.update(grads, state, params, curvature=lambda: grads)
        return jax.tree.map(jnp.add, params, updates), state

    state, found = make_optimizer(config, h, jnp.zeros((), jnp.int32)).init(params), [params]
    for i in range(steps):
        params, state = step(params, state, jnp.int32(i))
        found.append(params)
    return [*found, averaged_iterate(state, params)] if config.name == "schedule_free" else found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_exact_zeros_with_every_optimizer(name):
    rng = np.random.default_rng(0)
    kernel, schedule = rng.normal(size=(6, 8)) * (rng.uniform(size=(6, 8)) < 0.5), {"schedule": "constant"}
    # The last two of schedule_free are its parameters and those that it evaluates.
    kept = trained({"name": name, "sparsity": {"keep_zeros": True}, **schedule}, 3, kernel)[-2:]
    free = trained({"name": name, **schedule}, 3, kernel)[-1]
    for found in kept:
        np.testing.assert_array_equal(np.asarray(of(found)) == 0, kernel == 0)
        assert np.asarray(of(found, "bias")).any(), "a bias is no kernel"
    assert np.asarray(of(free))[kernel == 0].any()
    assert (np.asarray(of(kept[-1])) != kernel)[kernel != 0].any()


def test_gradual_pruning_follows_its_cubic_schedule():
    kernel = np.random.default_rng(0).normal(size=(10, 10))
    fields = {"sparsity": {"amount": 0.8, "begin": 2, "end": 12, "every": 5}}
    found = trained(fields, 16, kernel)
    shares = [float((np.asarray(of(params)) == 0).mean()) for params in found[1:]]
    expected = [0.8 * (1 - (1 - t) ** 3) for t in (0, 0.5, 1)]
    assert shares[:7] == [0] * 7
    assert shares[7:12] == pytest.approx([expected[1]] * 5)
    assert shares[12:] == pytest.approx([0.8] * 4)
    np.testing.assert_array_equal(of(found[13])[np.asarray(of(found[8])) == 0], 0)
    config = OptimizerConfig.model_validate(fields).sparsity
    assert float(wanted_share(config, jnp.int32(7))) == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sparsity": {"amount": 0.5, "end": 50}}, "leaves less than every=100 steps"),
        ({"sparsity": {"amount": 0.5}, "ema_decay": 0.9}, "an average of parameters"),
    ],
)
def test_schedules_that_cannot_work_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        OptimizerConfig.model_validate(fields)


def test_masked_gradients_are_clipped_by_their_own_norm():
    fields = {"name": "sgd", "schedule": "constant", "learning_rate": 1.0, "clip_norm": 0.1, "weight_decay": 0.0}
    config = OptimizerConfig.model_validate(fields | {"sparsity": {"keep_zeros": True}})
    optimizer = make_optimizer(
        config, Hyperparameters.build(config, steps=2, dropout=None, loss_weights={}), jnp.int32(0)
    )
    params = tree_of(jnp.eye(6), jnp.zeros(6))
    grads = jax.tree.map(jnp.ones_like, params)
    state = optimizer.init(params)
    moved, _ = optimizer.update(grads, state, params, norm=optax.tree.norm(grads), curvature=lambda: grads)
    expected, _ = optimizer.update(grads, state, params, curvature=lambda: grads)
    jax.tree.map(np.testing.assert_array_equal, moved, expected)
    # The first step with Nesterov's momentum is 1 + momentum times the gradient.
    assert float(optax.tree.norm(moved)) == pytest.approx(0.1 * 1.95, rel=1e-4)
