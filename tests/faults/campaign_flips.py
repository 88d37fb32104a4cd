"""Bits flipped in the newest checkpoint: how many are found, and how many are loaded in silence."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import CheckpointError
from lmjax.training.checkpoint import CheckpointConfig, Checkpoints, SavedCheckpoints, checkpoint_folder

OLD, NEW = 1, 2


def state(value: int) -> dict:
    """A small state with each kind of leaf that a run has."""
    params = {"kernel": jax.random.normal(jax.random.key(value), (16, 24)), "bias": jnp.full(24, float(value))}
    return {"params": params, "moments": params, "key": jax.random.key(value), "step": jnp.int32(value)}


def abstract() -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))


def two_checkpoints(workdir: pathlib.Path) -> pathlib.Path:
    """Returns a workdir with the checkpoints of two steps."""
    with Checkpoints(workdir, CheckpointConfig()) as checkpoints:
        for step in (OLD, NEW):
            checkpoints.save(step, state(step))
    return workdir


def files(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of the newest checkpoint."""
    return sorted(path for path in checkpoint_folder(workdir, NEW).rglob("*") if path.is_file())


def same(a: dict, b: dict) -> bool:
    raw = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    return all(np.array_equal(raw(x), raw(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


class Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def outcome(workdir: pathlib.Path, damaged: str) -> str:
    """Returns what a reader makes of a damaged checkpoint: "found", or what is wrong with that.

    Args:
        workdir: with the checkpoints of two steps.
        damaged: the file in the newest one that was damaged, which the message must name.
    """
    messages, logger = Messages(), logging.getLogger("absl")
    logger.addHandler(messages)
    try:
        restored = SavedCheckpoints(workdir).restore(abstract())
    except CheckpointError as e:
        return f"nothing was loaded: {e}"
    finally:
        logger.removeHandler(messages)
    if not same(restored, state(OLD)):
        return "loaded in silence"
    return "found" if any(damaged in text for text in messages.texts) else "the file is not named"


@dataclasses.dataclass(frozen=True)
class Flips:
    """What became of flipped bits.

    Attributes:
        counts: how many, by outcome.
        by_file: how many, by file.
    """

    counts: dict[str, int]
    by_file: dict[str, int]


def flip(path: pathlib.Path, bit: int) -> None:
    """Flips a bit of a file; doing it twice restores the file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def run(folder: pathlib.Path, number: int, seed: int = 0) -> Flips:
    """Flips one bit after another in the newest checkpoint, the files in turn, and reads it each time."""
    workdir, rng = two_checkpoints(folder), random.Random(seed)
    targets = [path for path in files(workdir) if path.stat().st_size]
    counts: dict[str, int] = {}
    by_file: dict[str, int] = {}
    for index in range(number):
        path = targets[index % len(targets)]
        bit = rng.randrange(8 * path.stat().st_size)
        flip(path, bit)
        name = path.relative_to(checkpoint_folder(workdir, NEW)).as_posix()
        result = outcome(workdir, name)
        flip(path, bit)
        counts[result] = counts.get(result, 0) + 1
        by_file[name] = by_file.get(name, 0) + 1
    return Flips(counts, by_file)


def rows(folder: pathlib.Path, number: int) -> list[str]:
    """Returns the rows of the table of the campaign."""
    flips = run(folder, number)
    found, silent = (flips.counts.get(name, 0) for name in ("found", "loaded in silence"))
    others = number - found - silent
    return [
        f"| bits flipped in the newest checkpoint, over its {len(flips.by_file)} files in turn | {number} | "
        f"{found} found, file named, step before loaded; {silent} loaded in silence; {others} otherwise |"
    ]
