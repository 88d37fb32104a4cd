"""Two processes train one run, with the same batches and losses as a single process with two devices."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from lmjax.errors import FlagError
from lmjax.parallel import distributed

pytestmark = pytest.mark.usefixtures("all_devices")

ROOT = pathlib.Path(__file__).parents[2]


def test_flags_go_together():
    with pytest.raises(FlagError, match="go together"):
        distributed.initialize("127.0.0.1:1", None, None)


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True),
    ],
)
def test_a_cluster_is_detected_by_its_variables(variables, several):
    assert distributed._detected(variables) is several


def start(corpus, workdir, *flags, devices):
    overrides = {
        "data.held_out": 0.2, "tokenizer.kind": "char", "tokenizer.byte_fallback": "false", "batch_size": 4,
        "task.length": 32, "model.embed_dim": 16, "model.num_heads": 2, "model.mlp_dim": 32, "model.num_layers": 1,
        "parallel.data": 1, "parallel.fsdp": 2, "logging.every": 1, "logging.tensorboard": "false",
        "evaluation.batches": 9, "checkpoint.every": 2,
    }  # fmt: skip
    command = [sys.executable, "-m", "lmjax", "train", f"--data={corpus}", f"--workdir={workdir}", "--steps=4"]
    command += ["--noprogress", *flags, *(f"--config.{k}={v}" for k, v in overrides.items())]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [v for line in lines for k, v in line.items() if k.endswith("/loss")]


def both_ways(data, tmp_path, *flags):
    """Trains the same run in two processes with a device each (workdir `two`), and in one with two (`one`)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    cluster = (*flags, "--num_processes=2", f"--coordinator_address={address}")
    processes = [start(data, tmp_path / "two", *cluster, f"--process_id={i}", devices=1) for i in range(2)]
    for process in processes:
        output = process.communicate(timeout=240)[0]
        assert process.returncode == 0, output
    alone = start(data, tmp_path / "one", *flags, devices=2)
    output = alone.communicate(timeout=240)[0]
    assert alone.returncode == 0, output


def test_two_processes_are_one_run(tmp_path):
    """Losses are the same, and each writes its share of an odd number of targets, with parameters split over both."""
    data = tmp_path / "data.jsonl"
    words = ["ab", "bc", "cd", "de", "ea"]
    pairs = [{"source": f"{words[i % 5]} {i}", "target": f"{i} {words[i % 5]}{words[i % 4]}"} for i in range(41)]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    more = ("--config.evaluation.generate=7", "--config.evaluation.max_new_tokens=6", "--lr=0.03")
    both_ways(data, tmp_path, "--objective=seq2seq", "--architecture=decoder", *more)
    one, two = (
        list(map(json.loads, (tmp_path / n / "metrics.jsonl").read_text().splitlines())) for n in ("one", "two")
    )
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert len(losses(tmp_path / "two")) == 12
    evaluated = [(a, b) for a, b in zip(one, two, strict=True) if "eval/heldout/seq2seq/chrf" in a]
    names = [name for name in one[-1] if name.startswith("eval/")]
    assert len(evaluated) == 2
    assert any(a["eval/heldout/seq2seq/chrf"] > 0 for a, _ in evaluated)
    for a, b in evaluated:
        assert {n: b[n] for n in names} == pytest.approx({n: a[n] for n in names}, rel=1e-5, abs=1e-6)


def test_two_processes_measure_a_task_as_one(tmp_path):
    """Accuracy, F1 and the other metrics are over all records, an odd number of them, in both processes together."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"a {i} {i % 3}", "label": i % 3}) + "\n" for i in range(41)))
    both_ways(data, tmp_path, "--objective=classification", "--architecture=encoder")
    one, two = (
        list(map(json.loads, (tmp_path / n / "metrics.jsonl").read_text().splitlines())) for n in ("one", "two")
    )
    names = [name for name in one[-1] if name.startswith("eval/")]
    assert sum("f1" in name for name in names) == 5
    evaluated = [(a, b) for a, b in zip(one, two, strict=True) if names[0] in a]
    assert len(evaluated) == 2
    for a, b in evaluated:
        assert {n: b[n] for n in names} == pytest.approx({n: a[n] for n in names}, rel=1e-5, abs=1e-6)
