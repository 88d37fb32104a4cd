"""Recorded losses of the first two steps of every family, so that every change of the numerics is noticed."""

import jax
import numpy as np
import pytest

from lmjax.parallel.mesh import ParallelConfig, make_mesh, to_device
from lmjax.runs.build import build
from lmjax.training.state import state_maker
from lmjax.training.step import make_train_step

GOLDEN = {
    "next_token": (5.234622, 5.247517),
    "mlm,nsp": (5.905460, 5.884113),
    "span_corruption": (5.240236, 5.263324),
}

CHANGED = (
    "the loss of the first steps has changed. If you meant to change the numerics (an initialiser, the order of random "
    "draws, a loss), say so in the commit and write the new numbers here; if not, this is a bug"
)


@pytest.mark.parametrize("task", GOLDEN)
def test_the_first_losses_are_what_they_were(tiny, tmp_path, task):
    run = build(tiny(task, model__num_layers=2), tmp_path)
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    hparams = jax.device_get(run.hparams)
    make_state, _ = state_maker(run.model, run.config.optimizer, hparams, 0, mesh)
    state = make_state()
    step = jax.jit(make_train_step(run.model, run.task, run.config.optimizer, 1))
    losses = []
    for number in range(2):
        rows = [run.train_examples(i, np.random.default_rng(i)) for i in range(8 * number, 8 * number + 8)]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        state, metrics = step(state, to_device(batch, mesh), hparams)
        losses.append(float(metrics["loss"]))
    assert losses == pytest.approx(GOLDEN[task], rel=1e-4), CHANGED
