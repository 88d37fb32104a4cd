"""The base of a run with an adapter: the model that it starts from, which it needs again whenever it is opened.

A run with an adapter keeps the parameters that it trains alone. `base.json` in its workdir says where the others are,
and their fingerprint, so that they are found again and a base that has changed is refused.
"""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

import jax

from lmjax.config import Config
from lmjax.errors import CheckpointError, DataError, FlagError
from lmjax.interop.shards import read_json
from lmjax.paths import expanded
from lmjax.strict_json import write_json
from lmjax.training.checkpoint import checkpoint_folder, saved_steps
from lmjax.training.manifest import fingerprint

# The file in a workdir that says where the base is.
BASE = "base.json"


class Base(NamedTuple):
    """Where the base of an adapter is.

    Attributes:
        place: its folder.
        step: the checkpoint of a workdir; None: the folder is one of Hugging Face.
        fingerprint: of its parameters.
    """

    place: str
    step: int | None
    fingerprint: str


def base_of(place: str | os.PathLike[str]) -> Base:
    """Returns the base that a workdir (its newest checkpoint) or a folder of Hugging Face is.

    Raises:
        CheckpointError: the workdir has no checkpoint.
    """
    folder = expanded(place).absolute()
    steps = saved_steps(folder)
    return Base(str(folder), steps[-1] if steps else None, _fingerprint(folder, steps[-1] if steps else None))


def _fingerprint(folder: pathlib.Path, step: int | None) -> str:
    if step is not None:
        inside = checkpoint_folder(folder, step)
        return fingerprint(sorted(path for path in inside.rglob("*") if path.is_file()), inside)
    return fingerprint(sorted(folder.glob("*.safetensors")), folder)


def base_in(workdir: pathlib.Path) -> Base | None:
    """Returns the base that a workdir names; None: it has no file with one.

    Raises:
        DataError: the file is damaged.
    """
    path = workdir / BASE
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        base = Base(**values)
    except TypeError as e:
        raise DataError(f"{path}: is damaged ({e}); copy it again") from e
    if not isinstance(base.place, str) or not isinstance(base.step, int | None):
        raise DataError(f"{path}: is damaged (place={base.place!r}, step={base.step!r}); copy it again")
    return base


def check_base(workdir: pathlib.Path, base: Base) -> None:
    """Raises CheckpointError if the base is gone, or has other parameters than the adapter was trained on."""
    folder, path = pathlib.Path(base.place), workdir / BASE
    there = folder if base.step is None else checkpoint_folder(folder, base.step)
    what = f"{there}: the base of the adapter in {workdir}"
    if not there.is_dir():
        raise CheckpointError(f"{what} is not there; put it back, or write in {path} where it is now")
    if (found := _fingerprint(folder, base.step)) != base.fingerprint:
        raise CheckpointError(
            f"{what} has changed since (fingerprint {found}, not {base.fingerprint}): an adapter fits the parameters "
            "that it was trained on alone; restore them"
        )


def known_base(config: Config, workdir: pathlib.Path) -> Base:
    """Returns the base of a run with an adapter, checked; a new run notes it in its workdir.

    Raises:
        CheckpointError: the base is gone or has changed, or a workdir with checkpoints does not name it.
        DataError: base.json is damaged.
        FlagError: the place is no folder.
    """
    base = base_in(workdir)
    if base is not None:
        check_base(workdir, base)
        return base
    if saved_steps(workdir):
        raise CheckpointError(f"{workdir / BASE}: is missing, so the base of this adapter is not known; copy it back")
    if not expanded(config.init_from).is_dir():
        raise FlagError(
            f"--init_from={config.init_from}: an adapter needs its base as a folder that stays; download it first"
        )
    base = base_of(config.init_from)
    if jax.process_index() == 0:
        write_json(workdir / BASE, base._asdict())
    return base
