"""Saves do not lose memory in tensorstore, and show no tracebacks of it."""

import asyncio
import gc
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import tensorstore

from lmjax.training.checkpoint import CheckpointConfig, Checkpoints
from lmjax.training.tensorstore_patches import hide_late_reports

_SAVES, _ARRAYS = 12, 20


def test_saves_lose_no_memory_in_tensorstore(tmp_path):
    """Without `reduce_leaks`, each save loses 1 KiB for every four arrays, and 10 KiB more."""
    state = {str(number): jax.random.normal(jax.random.key(number), (4,)) for number in range(_ARRAYS)}
    config = CheckpointConfig(keep=1)
    with Checkpoints(tmp_path, config) as checkpoints:

        def save(steps):
            for step in steps:
                checkpoints.save(step, state)
                checkpoints.wait()
            gc.collect()

        save(range(3))
        tracemalloc.start()
        try:
            save(range(3, 3 + _SAVES))
            snapshot = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
    only = snapshot.filter_traces([tracemalloc.Filter(True, "*/tensorstore_utils.py")])
    lost = sum(each.size for each in only.statistics("filename"))
    assert lost < 2048 * _SAVES, f"each save loses {lost / _SAVES:.0f} bytes in calls of tensorstore"


def test_specs_as_json_are_right_and_may_be_changed(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(3)})
    first = {"driver": "file", "path": f"{tmp_path}/a/"}
    values = tensorstore.KvStore.Spec(first).to_json()
    values["path"] = "changed"
    assert tensorstore.KvStore.Spec(first).to_json() == first
    assert tensorstore.KvStore.Spec(first | {"path": "/b/"}).to_json() == {"driver": "file", "path": "/b/"}


def test_late_reports_to_a_closed_loop_are_not_shown_and_other_errors_are(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: shown.append(report.exc_type))
    hide_late_reports()
    hide_late_reports()
    loop = asyncio.new_event_loop()
    loop.close()

    class Dropped:
        """Raises an error where nobody can catch it."""

        def __init__(self, action):
            self.action = action

        def __del__(self):
            self.action()

    for action in (lambda: loop.call_soon_threadsafe(print), lambda: [][0], lambda: int("a")):
        Dropped(action)
    assert shown == [IndexError, ValueError]
