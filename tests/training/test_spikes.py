"""The spike guard: updates with a norm far above the usual one are skipped, and no others."""

import jax
import jax.numpy as jnp
import pytest

from lmjax.model.dropout import DropoutRates
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.spikes import SpikeState, judge


@pytest.fixture(scope="module")
def judged():
    """Returns a function from norms to which of them are spikes, and the last state."""
    config = OptimizerConfig(spike_factor=3.0, spike_average=0.9, spike_warmup=5)
    h = Hyperparameters.build(config, steps=1, dropout=DropoutRates(), loss_weights={})
    step = jax.jit(lambda state, norm: judge(state, norm, jnp.isfinite(norm), h))

    def run(norms):
        state, spikes = SpikeState.zero(), []
        for norm in norms:
            spike, state = step(state, jnp.float32(norm))
            spikes.append(bool(spike))
        return spikes, state

    return run


def test_a_spike_is_seen_only_once_the_average_holds_enough(judged):
    assert judged([1, 9, 1, 1, 1, 7])[0] == [False] * 6  # 7 is below 3 times an average that holds a 9
    assert judged([1, 1, 1, 1, 1, 9, 1, 2.9])[0] == [False] * 5 + [True, False, False]
    assert judged([1, 1, 1, 1, 9])[0] == [False] * 5
    assert judged([1] * 6 + [1000, 9])[0][-2:] == [True, True]  # one spike must not hide the next


def test_the_average_is_that_of_the_norms_without_bias(judged):
    _, state = judged([2.0] * 3)
    assert state.average / (1 - 0.9**3) == pytest.approx(2.0)


def test_norms_that_stay_high_become_usual(judged):
    """Otherwise one lasting change of the norm would stop learning for ever."""
    spikes, state = judged([1.0] * 10 + [10.0] * 30)
    assert spikes[10]
    assert not spikes[-1]
    assert int(state.left_out) == sum(spikes)


def test_what_is_not_finite_leaves_the_average_alone(judged):
    spikes, state = judged([1.0] * 6 + [float("nan"), float("inf"), 9.0])
    assert spikes == [False] * 8 + [True]
    assert int(state.count) == 7
