"""The state on a mesh: optimizer state and averages have the shardings of the parameters, with every optimizer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.config import ModelConfig
from lmjax.model.dropout import DropoutRates
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from lmjax.training.checkpoint import CheckpointConfig, Checkpoints
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.optimizers import OPTIMIZERS
from lmjax.training.state import state_maker

pytestmark = pytest.mark.usefixtures("all_devices")

SMALL = ModelConfig(
    architecture="decoder", vocab_size=8, embed_dim=8, num_heads=2, mlp_dim=8, num_layers=1, max_length=8
)


def abstract_state(**fields):
    model = ModelConfig(
        architecture="decoder", vocab_size=256, embed_dim=128, num_heads=2, mlp_dim=256, num_layers=2, max_length=16,
        param_dtype="bfloat16",
    )  # fmt: skip
    config = OptimizerConfig(**fields)
    mesh = make_mesh(ParallelConfig(data=1, fsdp=4, tensor=2))
    hparams = Hyperparameters.build(config, steps=1, dropout=DropoutRates(), loss_weights={})
    return state_maker(LanguageModel(model), config, hparams, 0, mesh)[1]


def share(tree):
    """Returns the share of a tree's numbers that one of eight devices holds."""
    leaves = jax.tree.leaves(tree)
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
    return held / sum(math.prod(x.shape) for x in leaves)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimizer_is_split_as_the_parameters_are(name):
    """From axis names alone, factored moments would be split along the wrong dimensions."""
    state = abstract_state(name=name, schedule="constant", ema_decay=0.9)
    if name != "adafactor":
        assert share(state.opt_state) < 0.2
    assert share(state.average) == share(state.params) < 0.2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_optimizers_keep_is_float32_whatever_parameters_are(name):
    state = abstract_state(name=name, schedule="constant", ema_decay=0.9)
    kept = {x.dtype for x in jax.tree.leaves((state.opt_state, state.average))}
    assert kept <= {jnp.dtype("float32"), jnp.dtype("int32")}
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}


def test_frozen_parameters_have_no_optimizer_state():
    whole = abstract_state()
    frozen = abstract_state(group_patterns=("embedding|inputs",), group_factors=(0,))
    assert len(jax.tree.leaves(frozen.opt_state)) == len(jax.tree.leaves(whole.opt_state)) - 4
    assert share(frozen.opt_state) < 0.2


@pytest.mark.parametrize(("name", "ema_decay"), [("adamw", None), ("adamw", 0.9), ("schedule_free", None)])
def test_what_is_evaluated_is_read_alone_and_is_the_same(name, ema_decay, tmp_path):
    """The optimizer's state is as large as the parameters, or twice so."""
    config = OptimizerConfig(name=name, schedule="constant", ema_decay=ema_decay)
    hparams = Hyperparameters.build(config, steps=1, dropout=DropoutRates(), loss_weights={})
    make, abstract = state_maker(LanguageModel(SMALL), config, hparams, 0, make_mesh(ParallelConfig()))
    rng = np.random.default_rng(0)

    def drawn(x):
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding) if is_float else x

    state = jax.tree.map(drawn, make())
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        wanted = abstract.to_evaluate()
        found = checkpoints.restore(wanted)
    jax.tree.map(np.testing.assert_array_equal, found.evaluation_params(), state.evaluation_params())
    assert found.step is ...
    left = {name for name in ("params", "opt_state", "average") if set(jax.tree.leaves(getattr(wanted, name))) == {...}}
    # The averaged iterate of schedule_free is made of the parameters and of the optimizer's state.
    unused = {"params", "opt_state"} if ema_decay else set() if name == "schedule_free" else {"opt_state"}
    assert left == unused
