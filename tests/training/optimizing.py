"""Helpers for tests of optimizers: small parameter trees, configs, and one update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.model.dropout import DropoutRates
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.update import make_optimizer

RATES = {
    "adamw": 1e-2, "adam": 1e-2, "sgd": 3e-2, "adafactor": 5e-2, "lion": 3e-3, "muon": 5e-2, "schedule_free": 3e-2,
    "sophia": 1e-2,
}  # fmt: skip


def config_of(name, **fields):
    """Returns the config of an optimizer; fields are given by dotted path, with two underscores for the dot."""
    own = {"learning_rate": RATES[name], "schedule": "constant", "weight_decay": 0.01, "adafactor.factor_from": 2}
    fields = {path.replace("__", "."): value for path, value in fields.items()}
    return OptimizerConfig(**(own | {"name": name, "sophia.curvature_every": 2} | fields))


def numbers(config):
    return Hyperparameters.build(config, steps=100, dropout=DropoutRates(), loss_weights={})


def layers(rng):
    """Returns two stacked layers: attention kernels with a dimension for heads, and a norm."""
    sizes = {
        "attention": {"query": {"kernel": (2, 8, 2, 8)}, "out": {"kernel": (2, 2, 8, 8)}},
        "norm": {"scale": (2, 8)},
    }
    return jax.tree.map(lambda s: 0.3 * rng.normal(size=s), sizes, is_leaf=lambda x: isinstance(x, tuple))


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    tree = {"embedding": {"table": rng.normal(size=(16, 8))}, "stack": {"layers": layers(rng)}}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def unrolled(params):
    """Returns the same parameters with a name for every layer."""
    stacked = params["stack"]["layers"]
    return params | {"stack": {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(2)}}


def update(config, params, opt_state, grads, step, curvature=None):
    optimizer = make_optimizer(config, numbers(config), step)
    estimate = (lambda: jax.tree.map(jnp.abs, grads)) if curvature is None else (lambda: curvature)
    updates, opt_state = optimizer.update(grads, opt_state, params, curvature=estimate)
    return optax.apply_updates(params, updates), opt_state


@functools.cache
def compiled(config):
    """Returns the update of a config, jitted once for all tests."""
    return jax.jit(functools.partial(update, config))


def initial(config, params):
    return make_optimizer(config, numbers(config), jnp.int32(0)).init(params)


def some_grads(seed, params):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
