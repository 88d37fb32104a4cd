"""System calls that fail in what a run writes: one message, nothing half-saved, and the next run goes on from there."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.faults.campaign_calls import build

ROOT = pathlib.Path(__file__).parents[2]
SILENT = """
from lmjax.training.checkpoint import Checkpoints
wait = Checkpoints.wait
def silent(self):
    try:
        wait(self)
    except Exception:
        pass
Checkpoints.wait = silent
"""
TRIES = """
import pathlib, sys
from tests.faults.campaign_writes import main
main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.fixture
def tries(tmp_path):
    """Returns a function that makes so many calls fail, after some code, and returns the row and the list of them."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    environment["LD_PRELOAD"] = str(build(tmp_path))

    def run(code, number):
        command = [sys.executable, "-c", code + TRIES, tmp_path, str(number)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        return done.stdout, done.stderr

    return run


def test_a_system_call_that_fails_loses_nothing_and_is_told(tries):
    row, listed = tries("", 12)
    assert "| 12 | 12 right;" in row, listed


def test_a_save_whose_error_is_swallowed_is_found(tries):
    """The negative control."""
    row, listed = tries(SILENT, 12)
    assert "another state" in row, listed
