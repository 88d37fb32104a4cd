"""Saves that take longer than the steps between them: what a kill would lose, and what a reader beside the run sees."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from lmjax.commands.train import train
from lmjax.training import manifest
from lmjax.training.checkpoint import saved_steps
from lmjax.training.loop import Loop

ROOT = pathlib.Path(__file__).parents[2]
STEPS, EVERY = 12, 2
READER = """
import json, pathlib, sys
from lmjax.runs.trained import load_model
from lmjax.training.checkpoint import SavedCheckpoints, saved_steps
workdir, stop = map(pathlib.Path, sys.argv[1:])
real, read = SavedCheckpoints._read, []
def noted(self, step, abstract):
    state, failure = real(self, step, abstract)
    read.extend([step] if failure is None else [])
    return state, failure
SavedCheckpoints._read = noted
print("ready", flush=True)
while not stop.exists():
    if saved_steps(workdir):
        load_model(workdir)
print(json.dumps(read), flush=True)
"""


@pytest.fixture
def slow(monkeypatch):
    """Saves that take as long as many steps; returns how far each step was ahead of the newest checkpoint."""
    write, report, ahead = manifest.write, Loop._report_one, []

    def slowly(*arguments):
        time.sleep(1.0)
        write(*arguments)

    def noted(self, number, *rest):
        ahead.append(number - max(self.checkpoints.steps, default=0))
        report(self, number, *rest)

    monkeypatch.setattr(manifest, "write", slowly)
    monkeypatch.setattr(Loop, "_report_one", noted)
    return ahead


def test_a_kill_loses_at_most_two_intervals_and_a_reader_in_another_process_goes_on(tiny, slow, tmp_path):
    """The steps since the newest checkpoint was due, and one interval more while its save was still running."""
    stop, workdir = tmp_path / "stop", tmp_path / "run"
    config = tiny(steps=STEPS, checkpoint__every=EVERY, checkpoint__keep=1, evaluation__every=0)
    command = [sys.executable, "-c", READER, workdir, stop]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as reader:
        try:
            assert reader.stdout.readline() == "ready\n", reader.stderr.read()
            train(config, workdir, progress=False)
        finally:
            stop.touch()
            shown, errors = reader.communicate(timeout=120)
    assert reader.returncode == 0, errors
    read = json.loads(shown)
    assert read == sorted(read)
    assert len(set(read)) > 1
    assert saved_steps(workdir) == [STEPS]
    assert max(slow) > EVERY, "the saves are not slower than the steps between them"
    assert max(slow) <= 2 * EVERY
