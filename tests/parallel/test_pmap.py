"""Replicas by pmap compute the same as the mesh, and each can resume from the checkpoints of the other."""

import jax
import numpy as np
import pytest

from lmjax.commands.train import train
from lmjax.errors import FlagError
from lmjax.parallel import pmap
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from lmjax.runs.build import build
from lmjax.training.hyperparameters import numbers
from lmjax.training.metrics import read_metrics
from lmjax.training.optimizers import OPTIMIZERS
from lmjax.training.state import state_maker
from lmjax.training.step import make_train_step
from tests.thinned import thinned
from tests.workdirs import bits, losses, resumed_from

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("all_devices")]


@pytest.fixture(scope="module")
def configs(tiny):
    """Returns configs of the same run on the mesh and on replicas; without dropout, whose masks differ per replica."""
    fields = {
        "model__dropout__residual": 0, "model__dropout__attention": 0, "batch_size": 16, "accumulation": 2, "steps": 4,
        "checkpoint__every": 2, "evaluation__every": 2, "optimizer__learning_rate": 1e-2,
    }  # fmt: skip
    return {kind: tiny(parallel__kind=kind, **fields) for kind in ("mesh", "pmap")}


@pytest.fixture(scope="module")
def runs(configs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {kind: train(config, folder / kind, progress=False) for kind, config in configs.items()}


@pytest.mark.parametrize("name", ["train/loss", "train/grad_norm", "train/tokens_seen", "eval/heldout/loss"])
def test_losses_norms_and_counts_are_those_of_the_mesh(runs, name):
    """The replicas have different weights, so that a mean of their means would be another loss."""
    mesh, replicas = (read_metrics(runs[kind], name) for kind in ("mesh", "pmap"))
    assert mesh[0] == replicas[0]
    assert replicas[1] == pytest.approx(mesh[1], rel=2e-5)
    assert name == "train/tokens_seen" or len(set(replicas[1])) > 1


def test_a_resumed_run_goes_on_bit_for_bit(configs, runs, tmp_path):
    workdir = train(configs["pmap"], resumed_from(runs["pmap"], 2, tmp_path / "run"), progress=False)
    assert bits(workdir, 4) == bits(runs["pmap"], 4)
    assert losses(workdir) == losses(runs["pmap"])


def test_a_checkpoint_of_the_mesh_goes_on_under_pmap(configs, runs, tmp_path):
    workdir = resumed_from(runs["mesh"], 2, tmp_path / "run")
    (workdir / "config.json").write_text(configs["pmap"].to_json())
    train(configs["pmap"], workdir, progress=False)
    assert read_metrics(workdir, "train/loss")[1] == pytest.approx(
        read_metrics(runs["mesh"], "train/loss")[1], rel=2e-5
    )


@pytest.fixture(scope="module")
def layer(tiny, tmp_path_factory):
    """Returns a run of one layer, and 16 rows; the last rows have fewer predictions, to detect a mean of means."""
    fields = {"model__dropout__residual": 0, "model__dropout__attention": 0, "model__num_layers": 1, "task__length": 16}
    run = build(tiny(**fields), tmp_path_factory.mktemp("layer"))
    rows = [run.train_examples(i, np.random.default_rng(i)) for i in range(16)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch["weights"][8:, 4:] = 0
    return run, batch


@pytest.mark.parametrize("name", thinned(OPTIMIZERS, 3))
def test_every_optimizer_makes_one_update_on_every_replica(layer, name):
    """It is the update of one device with the whole batch; the second step starts from the first step's state.

    Two replicas are enough: missing or repeated sums are detected as well as with eight.
    """
    run, batch = layer
    fields = {"sophia.curvature_every": 1, "sophia.gamma": 1.0, "adafactor.factor_from": 2}
    config = run.config.optimizer.with_fields(fields | {"name": name, "schedule": "constant"})
    hparams = jax.device_get(run.hparams.replace(optimizer=numbers(config)))
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    make_state, _ = state_maker(run.model, config, hparams, 0, mesh)
    state = first = jax.device_get(make_state())
    step = jax.jit(make_train_step(run.model, run.task, config, 1))
    for _ in range(2):
        state, _ = step(state, batch, hparams)
    step = make_train_step(run.model, run.task, config, 1, pmap.AXIS)
    step = jax.pmap(step, pmap.AXIS, in_axes=(None, 0, None), devices=jax.devices()[:2])
    halves = {name: x.reshape(2, -1, *x.shape[1:]) for name, x in batch.items()}
    replicas, _ = step(first, halves, hparams)
    for one, other in jax.device_get(jax.tree.leaves(replicas.params)):
        np.testing.assert_array_equal(one, other, "replicas differ")
    replicas, _ = step(jax.device_get(jax.tree.map(lambda x: x[1], replicas)), halves, hparams)
    for before, whole, found in zip(*map(jax.tree.leaves, (first.params, state.params, replicas.params)), strict=True):
        np.testing.assert_allclose(found[0], whole, atol=1e-3 * np.abs(whole - before).max())


def test_dropout_differs_between_replicas():
    keys = jax.pmap(lambda _: jax.random.key_data(pmap.replica_key(jax.random.key(0), pmap.AXIS)), pmap.AXIS)(
        jax.numpy.arange(8)
    )
    assert len({tuple(key) for key in keys.tolist()}) == 8


def test_what_pmap_cannot_split_is_refused():
    pmap.check(ParallelConfig(kind="mesh", fsdp=2))
    with pytest.raises(FlagError, match=r"--parallel=pmap splits the batch alone, not fsdp=2, tensor=2"):
        pmap.check(ParallelConfig(kind="pmap", fsdp=2, tensor=2))
