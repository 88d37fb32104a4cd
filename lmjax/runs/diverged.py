"""What a run that diverged leaves and does: a file that names the batches, and the return to a good checkpoint."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils

from lmjax.config import write_json
from lmjax.data.pipeline import example_stream
from lmjax.errors import DivergedError
from lmjax.runs.build import Run
from lmjax.training.checkpoint import remove_steps
from lmjax.training.metrics import METRICS, keep_lines
from lmjax.training.rollback import MOST, Rollback, Rollbacks

_FILE = "divergence.json"
# Rows that are written down, and characters of each.
_ROWS, _SHOWN = 64, 200


def note(run: Run, rollbacks: Rollbacks, error: DivergedError) -> pathlib.Path:
    """Returns the file that says where a run diverged, and on which rows of which sets; the first process writes it."""
    path = run.workdir / _FILE
    if jax.process_index() == 0:
        rows = itertools.chain.from_iterable(_rows(run, rollbacks, step) for step in range(error.first, error.at + 1))
        write_json(
            path,
            {
                "first_step": error.first,
                "last_step": error.at,
                "last_good_checkpoint": error.good,
                "metrics": error.metrics,
                "rows": list(itertools.islice(rows, _ROWS)),
            },
        )
    return path


def _rows(run: Run, rollbacks: Rollbacks, step: int) -> Any:
    """Yields the rows of the batch of an update, with the beginning of their texts."""
    stage = next(s for s in run.stages if s.end is None or step <= s.end)
    first = (step - 1 - stage.begin + rollbacks.skipped(step - 1)) * stage.batch_size
    for position in range(first, first + stage.batch_size):
        epoch, index = stage.examples.mixture.row(position, stage.seed)
        source, row = stage.examples.mixture.source(index)
        features = stage.examples(index, example_stream(stage.seed, epoch, index))
        tokens = next(x for name, x in features.items() if name.endswith("tokens"))
        text = run.tokenizer.decode(int(x) for x in tokens if x < run.tokenizer.vocab_size)
        name = stage.examples.sources[source].name
        yield {"step": step, "set": name, "row": int(row), "epoch": int(epoch), "text": text[:_SHOWN]}


def go_back(run: Run, rollbacks: Rollbacks, error: DivergedError) -> None:
    """Makes the workdir that of a run at its last good checkpoint, which moves on past the batches it diverged on.

    Checkpoints and lines after it go first: a run that is killed in between meets the same divergence, and goes back.

    Raises:
        DivergedError: it has gone back too often.
    """
    if len(rollbacks) >= MOST:
        raise DivergedError(
            f"{error}\nThe run has gone back {MOST} times: the batches are not the cause", **error.facts
        ) from error
    logging.warning("%s\nGoing back to step %d, and on past the batches up to step %d's", error, error.good, error.at)
    if jax.process_index() == 0:
        remove_steps(run.workdir, error.good)
        keep_lines(run.workdir / METRICS, error.good)
        rollbacks.add(Rollback(error.good, error.at))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("lmjax_rollback")
