"""The state of a run: everything that changes from step to step, and so everything that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.extend.core import Literal

from lmjax.axes import RULES
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameter_paths import names_of
from lmjax.model.parameters import unboxed
from lmjax.streams import prng_key
from lmjax.training.groups import check_groups
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.optimizers.schedule_free import averaged_iterate
from lmjax.training.spikes import SpikeState
from lmjax.training.update import make_optimizer

PyTree = Any


class TrainState(struct.PyTreeNode):
    """Parameters, optimizer state and counters.

    Attributes:
        step: int32, number of updates so far, skipped ones included; also the position in the data.
        params: the parameters, in the parameter dtype.
        opt_state: optax's state.
        key: the run's PRNG key; it never changes, and step numbers are folded into it.
        tokens_seen: uint32 `[2]`, low and high word of the number of tokens read.
        skipped: int32, updates that were skipped because they were not finite.
        skipped_in_a_row: int32, how many of the latest updates were skipped one after the other.
        average: float32, the average of the parameters (`training.averages`), or None without averaging.
        spikes: the state of the guard against spikes, or None without a guard.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    key: jax.Array
    tokens_seen: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    average: PyTree | None = None
    spikes: SpikeState | None = None

    def evaluation_params(self) -> PyTree:
        """Returns the parameters for evaluation and inference: the averaged ones, if the run averages them."""
        return averaged_iterate(self.opt_state, self.params) if self.average is None else self.average

    def to_evaluate(self) -> TrainState:
        """Returns the state, of shapes, with `...` for each array that `evaluation_params` does not use.

        Orbax does not read those. With AdamW they are two thirds of the state.
        """
        leaves, tree = jax.tree.flatten(self)
        traced = jax.make_jaxpr(lambda leaves: tree.unflatten(leaves).evaluation_params())(leaves).jaxpr
        read = [*traced.outvars, *(x for equation in traced.eqns for x in equation.invars)]
        used = {x for x in read if not isinstance(x, Literal)}
        return tree.unflatten([leaf if x in used else ... for leaf, x in zip(leaves, traced.invars, strict=True)])


class StateKeys(NamedTuple):
    """The keys that a run's first state depends on.

    Attributes:
        parameters: of the initial parameters.
        steps: of dropout and of what else the training steps draw.
    """

    parameters: jax.Array
    steps: jax.Array

    @classmethod
    def of(cls, init: int, dropout: int) -> StateKeys:
        """Returns the keys of these seeds."""
        return cls(prng_key(init, "parameters"), prng_key(dropout, "steps"))


def init_state(
    model: LanguageModel,
    config: OptimizerConfig,
    hparams: Hyperparameters,
    keys: StateKeys,
    given: Mapping[str, PyTree] | None = None,
) -> TrainState:
    """Returns the state before the first step, with parameters and their average boxed with their axis names.

    Args:
        model: the model to train.
        config: the optimizer's config.
        hparams: the traced hyperparameters.
        keys: the run's keys.
        given: initial parameters by part of the model; other parts, and layers that a part lacks here, are initialised
            at random.
    """
    params = init_params(model, keys.parameters)
    params = _filled(params, given or {})
    step = jnp.zeros((), jnp.int32)
    return TrainState(
        step=step,
        params=params,
        opt_state=make_optimizer(config, hparams, step).init(as_float32(unboxed(params))),
        key=keys.steps,
        tokens_seen=jnp.zeros(2, jnp.uint32),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        average=as_float32(params) if config.averages else None,
        spikes=None if config.spike_factor is None else SpikeState.zero(),
    )


def _filled(boxed: PyTree, given: PyTree) -> PyTree:
    """Returns nested dicts of boxed parameters with the arrays of `given` where it has any."""
    if not isinstance(given, Mapping):
        return boxed.replace_boxed(given)
    return {**boxed, **{name: _filled(boxed[name], values) for name, values in given.items()}}


def as_float32(tree: PyTree) -> PyTree:
    """Returns the arrays in float32, in which optimizers compute whatever dtype the parameters have."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def add_tokens(tokens_seen: jax.Array, count: jax.Array) -> jax.Array:
    """Returns `tokens_seen + count` as two 32-bit words, because a long run reads more tokens than one word counts."""
    low = tokens_seen[0] + count.astype(jnp.uint32)
    return jnp.stack([low, tokens_seen[1] + (low < tokens_seen[0]).astype(jnp.uint32)])


def read_tokens(tokens_seen: jax.Array) -> int:
    """Returns the two words as one number."""
    low, high = jax.device_get(tokens_seen).tolist()
    return low + (high << 32)


def state_maker(
    model: LanguageModel,
    config: OptimizerConfig,
    hparams: Hyperparameters,
    seed: int,
    mesh: jax.sharding.Mesh,
    *,
    dropout_seed: int | None = None,
) -> tuple[Callable[..., TrainState], TrainState]:
    """Returns a function that makes the first state on the mesh, and that state's shapes, dtypes and shardings.

    A resumed run uses only the latter, and so initialises no parameters. The function takes the `given`
    parameters of `init_state`.

    Args:
        model: the model to train.
        config: the optimizer's config.
        hparams: the traced hyperparameters.
        seed: of the parameters, and of the steps where `dropout_seed` is None.
        mesh: the mesh.
        dropout_seed: of the steps.

    Raises:
        FlagError: a pattern of parameter groups that matches nothing in the model.
    """

    def init(given: Mapping[str, PyTree] | None = None) -> TrainState:
        return init_state(model, config, hparams, keys, given)

    keys = StateKeys.of(seed, seed if dropout_seed is None else dropout_seed)

    boxed = jax.eval_shape(init)
    plain = unboxed(boxed)
    check_groups(config, plain.params)
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
    shardings = shardings.replace(opt_state=_beside_parameters(plain, shardings))
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), plain, shardings)
    return jax.jit(lambda given=None: unboxed(init(given)), out_shardings=shardings), abstract


def _beside_parameters(state: TrainState, shardings: TrainState) -> PyTree:
    """Returns the optimizer state's shardings: an array with a parameter's path and shape has that one's sharding."""
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    places = jax.tree.leaves(shardings.params)
    known = {(names_of(path), leaf.shape): place for (path, leaf), place in zip(leaves, places, strict=True)}

    def place(path: tuple, leaf: jax.Array, default: jax.sharding.Sharding) -> jax.sharding.Sharding:
        names = names_of(path)
        found = (known.get((names[i:], leaf.shape)) for i in range(len(names)))
        return next(filter(None, found), default)

    return jax.tree_util.tree_map_with_path(place, state.opt_state, shardings.opt_state)
