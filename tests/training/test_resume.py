"""A run is a function of its config: a run that is interrupted at any point resumes bit for bit."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from lmjax import cli
from lmjax.commands.train import train
from lmjax.errors import CheckpointError, ConfigMismatchError, DivergedError, FlagError
from lmjax.runs.workdir import claim_workdir
from tests.workdirs import bits, losses, resumed_from

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("all_devices")]

STEPS = 12
EVERY = 4
LONG = 100  # steps of a run that is stopped from outside; it must still be running then


@pytest.fixture(scope="module")
def config(tiny):
    """A config with dropout, and with so few rows that 12 steps cross the end of an epoch."""
    return tiny(
        "mlm,nsp",
        accumulation=1,
        steps=STEPS,
        checkpoint__every=EVERY,
        checkpoint__keep=10,
        evaluation__every=EVERY,
        data__held_out=0.5,
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """Returns the workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return train(config, workdir, progress=False)


@pytest.mark.parametrize("step", [EVERY, 2 * EVERY])
def test_k_and_k_steps_are_2k_steps(config, whole, tmp_path, step):
    workdir = train(config, resumed_from(whole, step, tmp_path / "run"), progress=False)
    assert bits(workdir, STEPS) == bits(whole, STEPS)
    assert losses(workdir) == losses(whole)


def test_every_metric_has_its_name(config, whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    trained = next(line for line in lines if line["step"] == 1 and "train/loss" in line)
    for name in [
        "loss",
        "mlm/loss",
        "mlm/accuracy",
        "nsp/loss",
        "grad_norm",
        "param_norm",
        "learning_rate",
        "tokens_seen",
        "tokens_per_second",
        "model_flops_per_second",
        "peak_share",
        "peak_memory_bytes",
        "skipped_updates",
    ]:
        assert f"train/{name}" in trained
    assert {f"time/{name}" for name in ("input", "evaluation", "checkpoint", "compilation")} <= set(trained)
    assert [line["step"] for line in lines if "eval/heldout/mlm/bits_per_byte" in line] == [0, EVERY, 2 * EVERY, STEPS]
    # BERT's loss is the sum of both losses; tokens_seen is the sum over all steps so far.
    assert trained["train/loss"] == pytest.approx(trained["train/mlm/loss"] + trained["train/nsp/loss"])
    seen = [line["train/tokens_seen"] for line in lines if "train/loss" in line]
    assert seen == sorted(seen)
    assert config.batch_size * config.task.length >= seen[0] > 0


def test_a_run_that_diverges_for_good_stops_and_says_so(tiny, tmp_path):
    overrides = {"optimizer__learning_rate": 1e30, "optimizer__clip_norm": "none", "max_skipped": 3, "steps": 30}
    with pytest.raises(DivergedError, match=r"3 updates in a row.*learning_rate"):
        train(tiny("next_token", **overrides), tmp_path / "run", progress=False)


def test_the_epoch_ends_on_the_way(config, whole):
    """Otherwise the test above would not check that the second epoch's order and masks are restored."""
    from lmjax.runs.build import build

    rows = len(build(config, whole).train_examples)
    assert EVERY * config.batch_size < rows < STEPS * config.batch_size


def test_a_finished_run_is_left_as_it_is(config, whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    train(config, workdir, progress=False)
    assert losses(workdir) == losses(whole)
    assert bits(workdir, STEPS) == bits(whole, STEPS)


def test_another_seed_is_another_run(config, whole, tmp_path):
    """The negative control: different runs have different digests."""
    other = train(config.model_copy(update={"seed": 1}), tmp_path / "run", progress=False)
    assert bits(other, STEPS) != bits(whole, STEPS)


def test_a_workdir_of_another_config_is_refused(config, whole):
    with pytest.raises(ConfigMismatchError, match="seed: 0 there, 1 here"):
        train(config.model_copy(update={"seed": 1}), whole, progress=False)


def test_other_data_is_refused(config, whole, corpus, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    identity = json.loads((workdir / "data.json").read_text())
    (workdir / "data.json").write_text(json.dumps(identity | {"train": "0" * 32}))
    with pytest.raises(ConfigMismatchError, match="train changed"):
        train(config, workdir, progress=False)


def test_a_second_writer_is_refused(config, tmp_path):
    with claim_workdir(tmp_path / "run", config), pytest.raises(FlagError, match="another process"):
        claim_workdir(tmp_path / "run", config)


def test_what_file_managers_leave_is_no_run_and_no_obstacle(config, whole, tmp_path):
    step = max(int(p.name) for p in (whole / "checkpoints").iterdir() if p.name.isdigit())
    workdir = shutil.copytree(whole, tmp_path / "run")
    for folder in (workdir, workdir / "checkpoints", workdir / "checkpoints" / str(step)):
        for name in (".DS_Store", "._x", "Thumbs.db"):
            (folder / name).touch()
    before = (workdir / "metrics.jsonl").read_text()
    train(config, workdir, progress=False)
    assert (workdir / "metrics.jsonl").read_text() == before
    new = tmp_path / "new"
    new.mkdir()
    (new / ".DS_Store").touch()
    with claim_workdir(new, config):
        (new / "checkpoints").mkdir()
    assert [path.name for path in new.iterdir()] == [".DS_Store"], "a claim without a run has left files"


def test_a_command_that_was_killed_before_its_run_began_is_no_obstacle(config, tmp_path):
    (tmp_path / ".lock").touch()
    claim_workdir(tmp_path, config).close()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FlagError, match="holds no run"):
        claim_workdir(tmp_path, config)
    assert (tmp_path / "notes.txt").exists()


def damage(workdir: pathlib.Path, step: int) -> None:
    """Cuts every data file of a checkpoint to half its size."""
    for path in (workdir / "checkpoints" / str(step) / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def command(corpus):
    """Returns the command line of a run in its own process, on one device."""
    flags = {
        "data.held_out": 0.2, "tokenizer.kind": "char", "tokenizer.byte_fallback": "false", "batch_size": 4,
        "accumulation": 2, "task.length": 32, "model.embed_dim": 16, "model.num_heads": 2, "model.mlp_dim": 32,
        "model.num_layers": 1, "model.dropout.residual": 0.1, "checkpoint.every": 5, "logging.every": 1,
        "logging.tensorboard": "false", "evaluation.batches": 2,
    }  # fmt: skip
    overrides = [f"--config.{path}={value}" for path, value in flags.items()]
    return [sys.executable, "-m", "lmjax", "train", f"--data={corpus}", f"--steps={LONG}", "--noprogress", *overrides]


def start(command: list[str], workdir: pathlib.Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2]), "PYTHONWARNINGS": "error"}
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run_here(command: list[str], workdir: pathlib.Path) -> None:
    """Runs the command in this process, which shows it one device, as another process would have."""
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: first)
        cli.run([*command[3:], f"--workdir={workdir}"])


def wait_for_step(process: subprocess.Popen, workdir: pathlib.Path, step: int) -> None:
    path = workdir / "metrics.jsonl"
    for _ in range(1200):
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) > step:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"the run did not reach step {step}")


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    """Returns the workdir of that run without an interruption."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_here(command, workdir)
    return workdir


def test_terminated_and_killed_runs_go_on_bit_for_bit(command, uninterrupted, tmp_path):
    broken = tmp_path / "broken"
    process = start(command, broken)
    wait_for_step(process, broken, 13)
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode == 75, output
    assert "saved; run the command again" in output
    assert "Traceback" not in output

    process = start(command, broken)
    wait_for_step(process, broken, 35)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    run_here(command, broken)
    assert bits(broken, LONG) == bits(uninterrupted, LONG)
    assert losses(broken) == losses(uninterrupted)


def test_a_damaged_checkpoint_falls_back_and_none_that_loads_is_an_error(command, uninterrupted, tmp_path, caplog):
    workdir = shutil.copytree(uninterrupted, tmp_path / "run")
    damage(workdir, LONG)
    run_here(command, workdir)
    assert f"cannot read step {LONG}" in caplog.text
    assert bits(workdir, LONG) == bits(uninterrupted, LONG)

    for checkpoint in (workdir / "checkpoints").iterdir():
        damage(workdir, int(checkpoint.name))
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read(.|\n)*start over in another --workdir"):
        run_here(command, workdir)


def test_a_full_disk_is_one_message_and_never_a_checkpoint(command, uninterrupted, tmp_path):
    """A limit on the size of files simulates the full disk; files that exist already are not affected."""
    del uninterrupted  # it has filled the caches, whose files are larger than the limit
    limited = ["bash", "-c", 'ulimit -f 16; exec "$@"', "bash", *command]
    process = start(limited, tmp_path / "run")
    output = process.communicate()[0]
    assert process.returncode == 74, output
    assert "could not be saved" in output
    assert "File too large" in output
    assert "Traceback" not in output
    assert not [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
