"""What tests read from the workdirs of runs, and how they make one that was killed."""

import hashlib
import json
import pathlib
import shutil
import warnings

import jax
import numpy as np

from lmjax.training.checkpoint import ocp


def bits(workdir: pathlib.Path, step: int) -> dict[str, str]:
    """Returns a digest of every leaf of a checkpoint, PRNG key and counters included."""
    with ocp.training.Checkpointer((workdir / "checkpoints").absolute()) as checkpointer, warnings.catch_warnings():
        # Orbax warns that it takes the shardings from the checkpoint, which is what is wanted here.
        warnings.simplefilter("ignore", UserWarning)
        state = checkpointer.load_checkpointables(step)["state"]
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaves[jax.tree_util.keystr(path)] = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
    return leaves


def losses(workdir: pathlib.Path) -> dict[int, tuple[str, ...]]:
    """Returns the losses of every step as exact hexadecimal text; a step that stands twice is an error."""
    found: dict[int, tuple[str, ...]] = {}
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        names = sorted(name for name in line if name.endswith("loss"))
        kind = (line["step"], names[0].split("/")[0])
        assert kind not in found, f"{kind} stands twice"
        # A loss that was not finite is written as null.
        found[kind] = tuple("" if line[name] is None else float(line[name]).hex() for name in names)
    return found


def resumed_from(whole: pathlib.Path, step: int, to: pathlib.Path) -> pathlib.Path:
    """Returns a copy of a workdir as a kill after checkpoint `step` would have left it."""
    shutil.copytree(whole, to)
    for checkpoint in (to / "checkpoints").iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    return to


# What depends on the clock or on the machine's memory.
_TIMED = ("time/", "train/tokens_per_second", "train/steps_per_second", "train/model_flops", "train/peak_")


def untimed_lines(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Returns the lines of metrics.jsonl, in order, without what another run of the same config has otherwise."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.startswith(_TIMED)} for line in lines]
