"""The state of a run: all that changes from step to step, and so all that a checkpoint must hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lmjax.model.language_model import LanguageModel, init_params
from lmjax.parallel.axes import RULES
from lmjax.training.optimizer import Hyperparameters, OptimizerConfig, make_optimizer

PyTree = Any


class TrainState(struct.PyTreeNode):
    """Parameters, optimizer state and counters.

    Attributes:
        step: int32, updates tried so far; also the position in the data.
        params: the parameters, in the parameter dtype.
        opt_state: optax's state.
        key: the run's PRNG key; it never changes, step numbers are folded into it.
        tokens_seen: uint32 `[2]`, low and high word of the number of tokens read.
        skipped: int32, updates that were not finite and were left out.
        skipped_in_a_row: int32, how many of these were the latest.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    key: jax.Array
    tokens_seen: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def init_state(model: LanguageModel, config: OptimizerConfig, hparams: Hyperparameters, key: jax.Array) -> TrainState:
    """Returns the state before the first step, parameters boxed with their axis names."""
    init_key, run_key = jax.random.split(key)
    params = init_params(model, init_key)
    step = jnp.zeros((), jnp.int32)
    return TrainState(
        step=step,
        params=params,
        opt_state=make_optimizer(config, hparams, step).init(params),
        key=run_key,
        tokens_seen=jnp.zeros(2, jnp.uint32),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def add_tokens(tokens_seen: jax.Array, count: jax.Array) -> jax.Array:
    """Returns `tokens_seen + count` in two 32-bit words; a long run reads more than one word can count."""
    low = tokens_seen[0] + count.astype(jnp.uint32)
    return jnp.stack([low, tokens_seen[1] + (low < tokens_seen[0])])


def read_tokens(tokens_seen: jax.Array) -> int:
    """Returns the two words as one number."""
    low, high = jax.device_get(tokens_seen).tolist()
    return low + (high << 32)


def state_maker(
    model: LanguageModel, config: OptimizerConfig, hparams: Hyperparameters, seed: int, mesh: jax.sharding.Mesh
) -> tuple[Callable[[], TrainState], TrainState]:
    """Returns a function that makes the first state on the mesh, and that state's shapes, dtypes and shardings.

    A run that resumes needs only the latter: nothing is initialised to be thrown away.
    """

    def init() -> TrainState:
        return init_state(model, config, hparams, jax.random.key(seed))

    boxed = jax.eval_shape(init)
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), _unboxed(boxed), shardings)
    return jax.jit(lambda: _unboxed(init()), out_shardings=shardings), abstract


def _unboxed(tree: PyTree) -> PyTree:
    """Returns the tree without boxes; `nn.unbox` would also constrain each array, which shapes cannot be."""
    return jax.tree.map(
        lambda x: x.value if isinstance(x, nn.Partitioned) else x, tree, is_leaf=lambda x: isinstance(x, nn.Partitioned)
    )
