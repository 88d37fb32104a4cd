"""What a run depends on besides its config: its data, by content, and its environment; both are kept in the workdir."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from lmjax import __version__
from lmjax.config import Config
from lmjax.data.sources import corpus_fingerprint
from lmjax.errors import ConfigMismatchError, DataError
from lmjax.interop.shards import read_json
from lmjax.paths import shell_quoted
from lmjax.training.checkpoint import saved_steps

# The file in a workdir that identifies the data of the run.
IDENTITY = "data.json"


def identity_of(config: Config, prints: Mapping[str, str], pairs: bool) -> dict[str, Any]:
    """Returns everything that determines the documents, given the fingerprints of the training sets."""
    return {
        "train": prints if config.data.mixture else prints["train"],
        "evals": {e.name: corpus_fingerprint(e.path) for e in config.data.eval},
        "held_out": config.data.held_out,
        "split": config.data.split,
        "bad_records": config.data.bad_records,
        "pairs": pairs,
        **({} if config.data.subset is None else {"subset": [config.data.subset, config.seed_of("subset")]}),
        **config.data.reading,
    }


def check_identity(workdir: pathlib.Path, identity: dict) -> None:
    """Raises ConfigMismatchError if the workdir was trained on other data, or its record of the data is unreadable."""
    path = workdir / IDENTITY
    if not path.exists():
        if saved_steps(workdir):
            raise ConfigMismatchError(
                f"{path}: is missing, so it is not known whether the run was trained on the same data; restore it from "
                f"a copy, or train in another --workdir, from this one with --init_from={shell_quoted(workdir)}"
            )
        return
    try:
        known = read_json(path)
    except DataError as e:
        raise ConfigMismatchError(
            f"{e}, or train in another --workdir, from this one with --init_from={shell_quoted(workdir)}"
        ) from e
    # JSON turns tuples into lists, so the identity is converted before the comparison.
    here = json.loads(json.dumps(identity))
    if changed := [name for name in known | here if known.get(name) != here.get(name)]:
        raise ConfigMismatchError(
            f"--workdir={workdir} was trained on other data: {', '.join(changed)} changed since; "
            "restore the old data or use another --workdir"
        )


def environment() -> dict[str, Any]:
    """Returns what a result depends on besides the config: versions, devices, the command, the commit."""
    root = pathlib.Path(__file__).parents[2]
    commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "tokenizers", "numpy")
    return {
        "lmjax": __version__,
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "devices": [d.device_kind for d in jax.devices()],
        "processes": jax.process_count(),
        "cpus": os.cpu_count(),
        "command": sys.argv,
    }
