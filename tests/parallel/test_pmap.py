"""Replicas by pmap compute what the mesh computes, and their checkpoints are each other's."""

import jax
import pytest

from lmjax.commands.train import train
from lmjax.errors import FlagError
from lmjax.parallel import pmap
from lmjax.parallel.mesh import ParallelConfig
from lmjax.training.metrics import read_metrics
from tests.workdirs import bits, losses, resumed_from


@pytest.fixture(scope="module")
def configs(tiny):
    """The same run on the mesh and on replicas; without dropout, whose masks pmap draws per replica."""
    fields = {
        "model__dropout_rate": 0, "model__attention_dropout_rate": 0, "batch_size": 16, "accumulation": 2, "steps": 4,
        "checkpoint__every": 2, "evaluation__every": 2, "optimizer__learning_rate": 1e-2,
    }  # fmt: skip
    return {kind: tiny(parallel__kind=kind, **fields) for kind in ("mesh", "pmap")}


@pytest.fixture(scope="module")
def runs(configs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {kind: train(config, folder / kind, progress=False) for kind, config in configs.items()}


@pytest.mark.parametrize("name", ["train/loss", "train/grad_norm", "train/tokens_seen", "eval/heldout/loss"])
def test_losses_norms_and_counts_are_those_of_the_mesh(runs, name):
    """Weights differ between replicas: a mean of their means would be another loss."""
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


def test_dropout_differs_between_replicas():
    keys = jax.pmap(lambda _: jax.random.key_data(pmap.replica_key(jax.random.key(0), pmap.AXIS)), pmap.AXIS)(
        jax.numpy.arange(8)
    )
    assert len({tuple(key) for key in keys.tolist()}) == 8


def test_what_pmap_cannot_split_is_refused():
    pmap.check(ParallelConfig(kind="mesh", fsdp=2))
    with pytest.raises(FlagError, match=r"--parallel=pmap splits the batch alone, not fsdp=2, tensor=2"):
        pmap.check(ParallelConfig(kind="pmap", fsdp=2, tensor=2))
