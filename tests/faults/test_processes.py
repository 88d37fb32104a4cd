"""Two processes of one run, one of which is killed, stopped, or asked to stop: the other one ends in bounded time."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from lmjax.errors import FlagError
from lmjax.parallel import distributed

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = {
    "data.held_out": 0.2, "tokenizer.kind": "char", "tokenizer.byte_fallback": "false", "batch_size": 4,
    "task.length": 32, "model.embed_dim": 16, "model.num_heads": 2, "model.mlp_dim": 32, "model.num_layers": 1,
    "logging.every": 1, "logging.tensorboard": "false", "evaluation.batches": 1, "evaluation.every": 0,
    "checkpoint.every": 0,
}  # fmt: skip


class Pair:
    """Two processes that train as one, for longer than any test; a context manager."""

    def __init__(self, corpus, workdir):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.workdir = workdir
        command = [sys.executable, "-m", "lmjax", "train", f"--data={corpus}", f"--workdir={workdir}"]
        command += ["--steps=1000000", "--noprogress", *(f"--config.{k}={v}" for k, v in FIELDS.items())]
        command += [f"--coordinator_address={address}", "--num_processes=2"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
        self.processes = [
            subprocess.Popen([*command, f"--process_id={i}"], env=environment, stderr=subprocess.PIPE, text=True)
            for i in range(2)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def steps(self):
        path = self.workdir / "metrics.jsonl"
        return path.read_text().count("train/loss") if path.exists() else 0

    def train(self):
        """Waits until some steps are done."""
        end = time.monotonic() + 240
        while self.steps() < 3:
            assert time.monotonic() < end, "no step was done"
            assert all(process.poll() is None for process in self.processes)
            time.sleep(0.1)

    def end(self, number, seconds):
        """Returns the exit code and the last output of a process, which ends in so many seconds."""
        process = self.processes[number]
        _, errors = process.communicate(timeout=seconds)
        return process.returncode, errors


# The other two pairs are part of the campaign.
@pytest.mark.parametrize(("number", "victim"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 1)])
def test_a_process_that_loses_the_other_ends(corpus, tmp_path, number, victim):
    with Pair(corpus, tmp_path / "run") as pair:
        pair.train()
        pair.processes[victim].send_signal(number)
        code, errors = pair.end(1 - victim, 45)
        assert code == 70, errors
        assert "another" in errors, errors


def test_processes_of_which_one_is_asked_to_stop_save_one_step_together(corpus, tmp_path):
    with Pair(corpus, tmp_path / "run") as pair:
        pair.train()
        pair.processes[1].send_signal(signal.SIGTERM)
        for number in range(2):
            code, errors = pair.end(number, 60)
            assert code == 75, errors
        last = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()][-1]
        assert [p.name for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdecimal()] == [str(last)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("nohost", 2, 0), "--coordinator_address=nohost"),
        (("a:0", 2, 0), "--coordinator_address=a:0"),
        (("a:99999", 2, 0), "--coordinator_address=a:99999"),
        (("a:1", 0, 0), "--num_processes=0"),
        (("a:1", 2, 2), "--process_id=2"),
        (("a:1", 2, -1), "--process_id=-1"),
    ],
)
def test_numbers_and_addresses_that_cannot_be_right_are_refused(flags, message):
    with pytest.raises(FlagError, match=message):
        distributed.initialize(*flags)


def test_a_step_that_hangs_ends_the_process_with_the_stacks():
    code = (
        "import time\n"
        "from lmjax.parallel.watchdog import Watchdog\n"
        "with Watchdog(1.0) as watchdog:\n"
        "    with watchdog.paused():\n"
        "        time.sleep(2.5)\n"
        "    for step in range(3):\n"
        "        watchdog.report(f'step {step}')\n"
        "        time.sleep(0.6)\n"
        "    print('went on', flush=True)\n"
        "    time.sleep(30)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=25)
    assert done.returncode == 70
    assert done.stdout == "went on\n", "a compilation or a series of short steps counts as a hang"
    assert "step 2 has not ended in 1 seconds" in done.stderr
    assert 'File "<string>", line 10' in done.stderr


def test_a_process_whose_others_never_come_says_so():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "from lmjax.errors import StuckError\n"
        "from lmjax.parallel import distributed\n"
        "try:\n"
        f"    distributed.initialize('127.0.0.1:{port}', 2, 0, connect_timeout=3)\n"
        "except StuckError as e:\n"
        "    print(e, flush=True)\n"
        "    import os; os._exit(70)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 70
    assert "not all of --num_processes=2 processes connected within 3 seconds" in done.stdout + done.stderr
