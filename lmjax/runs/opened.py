"""A run that is open: what its workdir holds is read, and what the training writes there is ready to be written."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax

from lmjax.parallel.watchdog import Watchdog
from lmjax.phases import phase
from lmjax.runs.build import Run
from lmjax.runs.workdir import check_nothing_lost
from lmjax.training.board import HyperparameterTable
from lmjax.training.checkpoint import Checkpoints
from lmjax.training.evaluate import Evaluator
from lmjax.training.metrics import MetricsWriter, Timers
from lmjax.training.state import TrainState
from lmjax.training.stopping import EarlyStopping, resumed


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """A run at the step at which it starts or resumes.

    Attributes:
        state: the state of this step.
        start: the number of the step.
        stopping: early stopping, which knows the evaluations up to this step.
        writer: writes metrics; None in all processes but the first.
    """

    state: TrainState
    start: int
    stopping: EarlyStopping
    writer: MetricsWriter | None


def open_run(
    stack: contextlib.ExitStack,
    run: Run,
    checkpoints: Checkpoints,
    abstract: TrainState,
    make_state: Callable[[], TrainState],
    evaluator: Evaluator,
) -> OpenRun:
    """Returns the run at the step of its newest checkpoint, or with a new state if it has none.

    Args:
        stack: closes what is opened here.
        run: the parts of the run.
        checkpoints: its checkpoints.
        abstract: the shapes, dtypes and shardings of its state.
        make_state: makes its first state.
        evaluator: evaluates it.

    Raises:
        CheckpointError: checkpoints that the run has saved are missing or damaged.
    """
    with phase("loading the newest checkpoint" if checkpoints.steps else "starting"):
        restored = checkpoints.restore(abstract)
        check_nothing_lost(run.workdir, None if restored is None else int(restored.step))
        state = make_state() if restored is None else restored
    start, evaluation = 0 if restored is None else int(restored.step), run.config.evaluation
    stopping = resumed(evaluation, checkpoints, run.workdir, evaluator.followed(evaluation.metric), start)
    return OpenRun(state, start, stopping, stack.enter_context(metrics_writer(run, start)))


@contextlib.contextmanager
def compiling(timers: Timers, watchdog: Watchdog) -> Iterator[None]:
    """Counts the time spent inside as compilation of the training step, and leaves it out of the time of a step."""
    with timers.time("compilation"), phase("compiling the training step"), watchdog.paused():
        yield


def metrics_writer(run: Run, start: int) -> contextlib.AbstractContextManager[MetricsWriter | None]:
    """Returns the writer of metrics in the first process, and None in the others, as a context manager."""
    if jax.process_index():
        return contextlib.nullcontext()
    names = [f"eval/{evaluated.name}/loss" for evaluated in run.eval_sets]
    table = HyperparameterTable(run.config.flat(), names)
    return MetricsWriter(run.workdir, run.config.logging, start, table)
