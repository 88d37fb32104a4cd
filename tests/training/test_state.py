"""The state on a mesh: optimizer state and averages have the shardings of the parameters, with every optimizer."""

import math

import jax
import jax.numpy as jnp
import pytest

from lmjax.model.config import ModelConfig
from lmjax.model.groups import DropoutRates
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.optimizers import OPTIMIZERS
from lmjax.training.state import state_maker

pytestmark = pytest.mark.usefixtures("all_devices")


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
