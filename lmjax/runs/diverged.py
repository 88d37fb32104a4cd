"""What happens after a run diverged: a file lists the rows of its last batches, and the workdir can be rolled back."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils

from lmjax.errors import DivergedError
from lmjax.runs.build import Run
from lmjax.strict_json import write_json
from lmjax.training.checkpoint import remove_steps
from lmjax.training.metrics import METRICS, keep_lines
from lmjax.training.rollback import MOST, Rollback, Rollbacks

_FILE = "divergence.json"
# The most rows in the file, and characters of each row's text.
_ROWS, _SHOWN = 64, 200


def note(run: Run, rollbacks: Rollbacks, error: DivergedError) -> pathlib.Path:
    """Returns the path of a file that says at which steps and on which rows a run diverged; process 0 writes it."""
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
    """Yields the rows of the batch of update `step`, each with the beginning of its text."""
    stage = next(s for s in run.stages if s.end is None or step <= s.end)
    first = (step - 1 - stage.begin + rollbacks.skipped(step - 1)) * stage.batch_size
    for position in range(first, first + stage.batch_size):
        epoch, index, features = stage.example(position)
        source, row = stage.examples.mixture.source(index)
        tokens = next(x for name, x in features.items() if name.endswith("tokens"))
        text = run.tokenizer.decode(int(x) for x in tokens if x < run.tokenizer.vocab_size)
        name = stage.examples.sources[source].name
        yield {"step": step, "set": name, "row": int(row), "epoch": int(epoch), "text": text[:_SHOWN]}


def go_back(run: Run, rollbacks: Rollbacks, error: DivergedError) -> None:
    """Rolls the workdir back to its last good checkpoint, and records that the run skips the batches it diverged on.

    Later checkpoints and metrics are removed before the rollback is recorded. So a run that is killed in between
    diverges again at the same step and rolls back then.

    Raises:
        DivergedError: the run has rolled back too often.
    """
    if len(rollbacks) >= MOST:
        raise DivergedError(
            f"{error}\nThe run has rolled back {MOST} times, so the batches are not the cause", **error.facts
        ) from error
    logging.warning("%s\nRolling back to step %d, and skipping the batches up to step %d", error, error.good, error.at)
    if jax.process_index() == 0:
        remove_steps(run.workdir, error.good)
        keep_lines(run.workdir / METRICS, error.good)
        rollbacks.add(Rollback(error.good, error.at))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("lmjax_rollback")
