"""The equal average of parameters (SWA) is their mean, is evaluated, and goes on bit for bit after a kill."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import train
from lmjax.config import resolve
from lmjax.errors import FlagError
from lmjax.runs.build import build
from lmjax.training.state import state_maker
from lmjax.training.step import make_train_step
from tests.workdirs import bits, losses, resumed_from


def test_it_is_the_mean_of_the_parameters_from_a_step_on(tiny, tmp_path):
    run = build(tiny(optimizer__average_from=3, optimizer__average_every=2, optimizer__learning_rate=0.01,
                     optimizer__warmup_steps=0), tmp_path)  # fmt: skip
    make_state, _ = state_maker(run.model, run.config.optimizer, run.hparams, 0, run.mesh)
    step = jax.jit(make_train_step(run.model, run.task, run.config.optimizer, 1))
    batch = jax.tree.map(jnp.asarray, run.stages[0].local_batch())
    states = [state := make_state()]
    for _ in range(8):
        states.append(state := step(state, batch, run.hparams)[0])
    at = lambda state: np.asarray(jax.tree.leaves(state.params)[0], np.float64)  # noqa: E731
    for number, state in enumerate(states):
        counted = [at(states[i]) for i in range(3, number + 1, 2)] or [at(state)]
        np.testing.assert_allclose(jax.tree.leaves(state.average)[0], np.mean(counted, 0), atol=1e-6)
    assert not np.allclose(at(states[8]), jax.tree.leaves(states[8].evaluation_params())[0], atol=1e-5)


def test_it_goes_on_bit_for_bit(tiny, tmp_path):
    config = tiny(optimizer__average_from=2, steps=6, checkpoint__every=3, checkpoint__keep=10, evaluation__every=3,
                  optimizer__learning_rate=0.01)  # fmt: skip
    whole = train(config, tmp_path / "whole", progress=False)
    workdir = train(config, resumed_from(whole, 3, tmp_path / "run"), progress=False)
    assert bits(workdir, 6) == bits(whole, 6)
    assert losses(workdir) == losses(whole)


def test_two_averages_are_refused():
    with pytest.raises(FlagError, match=r"ema_decay=0.9 and average_from=3: a run keeps one average"):
        resolve(overrides={"optimizer.ema_decay": "0.9", "optimizer.average_from": "3"})
