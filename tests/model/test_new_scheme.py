"""A position scheme is added by a class and a line in the registry, as the docstring of lmjax.model says."""

from typing import Literal

import flax.linen as nn
import jax
import numpy as np
import pydantic
import pytest

from lmjax.axes import RULES
from lmjax.model.config import ModelConfig
from lmjax.model.layers import Embed
from lmjax.model.positions import SCHEMES
from lmjax.model.positions.scheme import Scheme
from lmjax.parallel.mesh import to_device
from lmjax.runs.build import build as build_run
from lmjax.training.state import state_maker
from lmjax.training.step import make_train_step


class EveryFour(Scheme):
    """A learned vector for each position modulo four, and a bias of minus one for keys from the fourth on."""

    def problems(self, config, used):
        """Returns the rule on the longest row."""
        return ((used and config.max_length % 4 != 0, f"max_length={config.max_length} is no multiple of 4"),)

    def embed(self, config, positions):
        """Returns the vectors of the positions."""
        return Embed(config, 4, "positions", name="every_four")(positions % 4)

    def bias(self, config, name, *, causal):
        """Returns the function from positions to the bias: minus one for all keys from the fourth on."""

        def bias(queries, keys=None):
            columns = np.arange(queries.shape[1]) >= 4
            return np.broadcast_to(-columns.astype(np.float32), (1, config.num_heads, len(columns), len(columns)))

        return bias


@pytest.fixture
def config_class(monkeypatch):
    """Returns the class ModelConfig, imported while the registry has one more scheme."""
    monkeypatch.setitem(SCHEMES, "every_four", EveryFour())

    class Extended(ModelConfig):
        """The class ModelConfig with the new scheme in the registry."""

        positions: Literal[*SCHEMES]

    return Extended


def test_a_new_scheme_trains(config_class, tiny, tmp_path):
    run = build_run(tiny("next_token"), tmp_path)
    config, stage = run.config, run.stages[-1]
    model = run.model.clone(config=config_class(**dict(run.model.config) | {"positions": "every_four"}))
    with jax.numpy_dtype_promotion("standard"), jax.set_mesh(run.mesh), nn.logical_axis_rules(RULES):
        make_state, _ = state_maker(model, config.optimizer, run.hparams, config.seed, run.mesh)
        state = make_state()
        before = jax.device_get(state.params)
        step = jax.jit(make_train_step(model, stage.task, config.optimizer, config.accumulation))
        state, metrics = step(state, to_device(stage.local_batch(), run.mesh), run.hparams)
    after = jax.device_get(state.params)
    assert np.isfinite(jax.device_get(metrics)["loss"])
    inputs = (nn.unbox(params)["backbone"]["inputs"] for params in (before, after))
    first, second = (params["every_four"]["table"] for params in inputs)
    assert (first != second).any(), "the table of the scheme is not trained"
    assert "positions" not in nn.unbox(after)["backbone"]["inputs"]


def test_the_rules_of_a_new_scheme_are_asked(config_class, build):
    values = dict(build("decoder")[0].config)
    with pytest.raises(pydantic.ValidationError, match="max_length=15 is no multiple of 4"):
        config_class(**values | {"positions": "every_four", "max_length": 15})
    assert config_class(**values | {"positions": "none", "max_length": 15})


def test_a_scheme_that_is_not_in_the_registry_is_no_value_of_the_config(build):
    with pytest.raises(pydantic.ValidationError, match="'none', 'learned'"):
        ModelConfig(**dict(build("decoder")[0].config) | {"positions": "every_four"})
