"""Several processes of one machine: their shares of the devices, and what happens when one dies or all are stopped."""

import os
import pathlib
import signal
import sys
import threading

import pytest

from lmjax.errors import FlagError, PreemptedError, SaveError
from lmjax.sweep import processes
from lmjax.sweep.ledger import Ledger, now
from lmjax.sweep.processes import Pool, WorkerError, shares
from tests.sweep.test_launch import targets

# Stands for `lmjax sweep --worker`; BEHAVIOUR is what it does with the runs, given their seeds.
WORKER = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import pathlib
from lmjax.errors import UserError
from lmjax.runs.workdir import lock_workdir
from lmjax.sweep.launch import Launcher
from lmjax.sweep.ledger import Ledger
from lmjax.sweep.outcome import Outcome

def train(configs, workdirs):
    seeds = [config.seed for config in configs]
    for workdir in workdirs:
        workdir.mkdir(exist_ok=True)
    locks = [lock_workdir(workdir) for workdir in workdirs]
{behaviour}
    return [Outcome(w, "done", 5, {{}}, 9, 8.0, 7.0) for w in workdirs]

ledger = Ledger(pathlib.Path({folder!r}))
try:
    Launcher(ledger, ledger.read()[1], lambda config: None, train, {since!r}).run()
except UserError as e:
    print(e)
    sys.exit(e.exit_code)
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """A function from the behaviour of the processes to the statuses of four runs that two of them have trained."""

    def run(behaviour, count=2):
        ledger, runs = Ledger(tmp_path), targets(4)
        ledger.write({}, {}, runs)

        def command(folder, since, most):
            code = WORKER.format(
                root=str(pathlib.Path(__file__).parents[2]), folder=str(folder), since=since, behaviour=behaviour
            )
            return [sys.executable, "-c", code]

        monkeypatch.setattr(processes, "worker_command", command)
        Pool(ledger, runs, count, now()).run()
        return {name: result["status"] for name, result in ledger.results().items()}

    return run


def test_a_process_that_is_killed_is_replaced_and_its_run_recorded(pool, tmp_path):
    statuses = pool("    os.kill(os.getpid(), signal.SIGKILL) if 1 in seeds else None")
    assert statuses == {"seed=0": "done", "seed=1": "crashed", "seed=2": "done", "seed=3": "done"}
    assert "ended by SIGKILL" in Ledger(tmp_path).results()["seed=1"]["error"]
    assert not list((tmp_path / "workers").iterdir())


def children() -> set[str]:
    """Returns the numbers of the processes that this one has started, those of other tests among them."""
    tasks = pathlib.Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}


def test_a_request_to_stop_reaches_all_processes(pool):
    threading.Timer(4, os.kill, (os.getpid(), signal.SIGTERM)).start()
    behaviour = "    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n    time.sleep(60)"
    before = children()
    with pytest.raises(PreemptedError, match="all runs saved; run the command again"):
        pool(behaviour)
    assert children() <= before, "a worker goes on"


def test_a_process_that_cannot_save_or_start_ends_the_command_with_its_last_words(pool, tmp_path):
    with pytest.raises(SaveError, match=r"worker-0\.log: no room on the disk"):
        pool("    print('no room on the disk'); sys.exit(74)", count=1)
    for path in (tmp_path / "workers").iterdir():
        path.unlink()
    with pytest.raises(WorkerError, match=r"ended with code 1: SyntaxError.*worker-0\.log"):
        pool("    this is no Python", count=1)


def test_each_process_has_its_own_gpus_or_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 5, 6})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert shares(2) == [{0, 1}, {2, 5, 6}]
    with pytest.raises(FlagError, match=r"--processes=6: there are 5 cores; take 1 to 5"):
        shares(6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3,4")
    assert shares(2) == [{"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": "3,4"}]
    with pytest.raises(FlagError, match="there are 3 GPUs"):
        shares(4)
