"""Slurm jobs of a sweep, on a real Slurm of one node that tests/sweep/slurm.sh starts; where it cannot, they skip."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from lmjax.errors import FlagError
from lmjax.sweep import slurm
from lmjax.sweep.ledger import Ledger, now
from tests.sweep.test_launch import targets
from tests.sweep.test_processes import WORKER

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Slurm cluster of this machine."""
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(
        ["bash", str(ROOT / "tests/sweep/slurm.sh"), str(folder)], capture_output=True, text=True, check=False
    )
    if started.returncode:
        pytest.skip(started.stderr.strip() or "no Slurm here")
    os.environ["SLURM_CONF"] = started.stdout.strip().splitlines()[-1]
    yield folder
    del os.environ["SLURM_CONF"]
    subprocess.run(["bash", str(ROOT / "tests/sweep/slurm.sh"), str(folder), "stop"], check=False)


@pytest.fixture
def submitted(tmp_path, monkeypatch, cluster):
    """A function from the behaviour of jobs to the ledger of four runs, the runs, the array's number, and the time."""
    pytest.importorskip("submitit")

    def submit(behaviour, count):
        ledger, runs, since = Ledger(tmp_path / "out"), targets(4), now()
        ledger.write({}, {}, runs)
        code = WORKER.format(root=str(ROOT), folder=str(tmp_path / "out"), since=since, behaviour=behaviour)
        monkeypatch.setattr(slurm, "worker_command", lambda folder, since, most: [sys.executable, "-c", code])
        return ledger, runs, slurm.submit(ledger, count, ["time=5"], since, None), since

    return submit


def finished(ledger, runs, job, since):
    slurm.follow(job, lambda: ledger.ended(runs, since))
    return {name: result["status"] for name, result in ledger.results().items()}


def command(*arguments):
    return subprocess.run(arguments, capture_output=True, text=True, check=False).stdout


def written(path):
    return pathlib.Path(path).read_text() if os.path.exists(path) else ""


def waits(ready, seconds=120, act=lambda: None):
    """Calls `act` at once and every `seconds` until something is ready, at most two minutes."""
    end, again = time.monotonic() + 120, 0.0
    while not ready() and time.monotonic() < end:
        if time.monotonic() >= again:
            act()
            again = time.monotonic() + seconds
        time.sleep(0.2)


def test_an_array_of_jobs_trains_each_run_once(submitted, tmp_path):
    log = tmp_path / "log"
    ledger, runs, job, since = submitted(
        f"    open({str(log)!r}, 'a').write(f'{{seeds[0]}} {{os.environ[\"SLURM_ARRAY_TASK_ID\"]}}\\n'); time.sleep(1)",
        2,
    )
    assert finished(ledger, runs, job, since) == {f"seed={i}": "done" for i in range(4)}
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(seed for seed, _ in lines) == ["0", "1", "2", "3"]


def test_a_job_that_slurm_preempts_saves_and_goes_on_when_it_is_started_again(submitted, tmp_path):
    mark = str(tmp_path / "mark")
    behaviour = f"""
    def stop(*_):
        open({mark!r}, 'a').write('saved ')
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    first = not os.path.exists({mark!r})
    open({mark!r}, 'a').write('trains ')
    time.sleep(60 if first else 0)"""
    ledger, runs, job, since = submitted(behaviour, 1)

    def preempt():
        waits(lambda: "trains" in written(mark))
        # Slurm drops a signal to a job that it is still starting.
        waits(lambda: "saved" in written(mark), 10, lambda: command("scancel", "--signal=USR2", job))
        waits(lambda: "PENDING" in command("squeue", "-h", "-j", job, "-o", "%T"))
        # Slurm starts a job that was put back into the queue only after two minutes, unless it is told to; within the
        # second of the requeue its node takes the new start for the revoked one.
        time.sleep(3)
        command("scontrol", "update", f"JobId={job}", "StartTime=now")

    thread = threading.Thread(target=preempt)
    thread.start()
    statuses = finished(ledger, runs, job, since)
    thread.join()
    assert statuses == {f"seed={i}": "done" for i in range(4)}
    assert pathlib.Path(mark).read_text().split()[:3] == ["trains", "saved", "trains"]


def test_jobs_that_end_with_runs_left_end_the_command_too(submitted):
    ledger, runs, job, since = submitted("    sys.exit(3)", 1)
    assert finished(ledger, runs, job, since) == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("partition", "give NAME=VALUE"),
        ("a b=1", "give NAME=VALUE"),
        ("nodes=2", "each job of a sweep trains on one node"),
    ],
)
def test_wrong_parameters_are_errors(given, words):
    with pytest.raises(FlagError, match=words):
        slurm.settings([given])


def test_parameters_of_jobs_are_those_of_submitit(tmp_path, cluster):
    pytest.importorskip("submitit")
    assert slurm.settings(["partition=gpu", "time=240"]) == {"slurm_partition": "gpu", "slurm_time": 240}
    with pytest.raises(FlagError, match=r"--launcher=slurm: .*partion"):
        slurm.submit(Ledger(tmp_path), 1, ["partion=all"], now(), None)
