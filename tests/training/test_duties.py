"""Each line of metrics, evaluation, checkpoint and early stop happens exactly once, wherever the run is interrupted.

The loop, the checkpoints and the files are real; the model is one number, so that every interruption can be tested.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import PreemptedError, WorkerError
from lmjax.model.dropout import DropoutRates
from lmjax.parallel.watchdog import Watchdog
from lmjax.training.calls import CallPlan, Reader, several
from lmjax.training.checkpoint import CheckpointConfig, Checkpoints
from lmjax.training.evaluate import EvaluationConfig, Followed
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.loop import Loop, Made
from lmjax.training.metrics import LoggingConfig, MetricsWriter, Timers, read_lines
from lmjax.training.stages import OpenStage
from lmjax.training.state import TrainState
from lmjax.training.stopping import resumed
from tests.workdirs import untimed_lines

STEPS = 6
LOSSES = (5.0, 4.0, 3.0, 3.5, 3.6, 3.7, 3.8, 3.9, 4.0)  # by step; the best step is evaluated, and no multiple of 3


class Killed(BaseException):
    """Stands for SIGKILL: an exception that no handler catches."""


class Course:
    """A single stage for all steps, whose step counts the steps and adds up the batches in the parameters.

    Its batches end with an error of the data at step `broken`.
    """

    def __init__(self, start, broken=100):
        def update(state, batch):
            params = {"steps": state.params["steps"] + 1, "sum": state.params["sum"] * 1.5 + batch["number"]}
            metrics = {"loss": params["sum"], "learning_rate": jnp.ones(()), "grad_norm": jnp.ones(())}
            counts = {
                "tokens": jnp.ones((), jnp.uint32),
                "tokens_seen": state.tokens_seen,
                "skipped_in_a_row": jnp.int32(0),
            }
            return state.replace(params=params, step=state.step + 1), metrics | counts

        def step(state, call, hparams):
            del hparams
            self.calls.append(call.updates)
            self.seconds += 100 * call.updates
            return several(update, call.updates)(state, call.batch)

        def batches():
            for number in range(start, broken - 1):
                yield {"number": np.float32(number)}
            raise WorkerError(f"batch {broken}")

        self.calls, self.seconds = [], 0
        self._stage = OpenStage(None, step, lambda batch, stacked: batch, Reader(batches(), alone=True), 1.0)

    def at(self, number):
        del number
        return self._stage

    def changes(self, number):
        del number
        return False

    def epochs(self, number):
        return {"train": number / 10}


class Evaluator:
    """Returns the losses above."""

    sets = (types.SimpleNamespace(name="heldout"),)

    def compile(self, params):
        pass

    def __call__(self, params, each_batch):
        return {"eval/heldout/loss": LOSSES[int(params["steps"])]}


class Moments:
    """Counts the moments before and after each call of the wrapped functions, and raises Killed at one of them."""

    def __init__(self, killed_at):
        self.count, self._killed_at = 0, killed_at

    def __call__(self, f):
        def wrapped(*args, **options):
            self._pass()
            result = f(*args, **options)
            self._pass()
            return result

        return wrapped

    def _pass(self):
        if self.count == self._killed_at:
            raise Killed
        self.count += 1


def first_state():
    zero = jnp.zeros((), jnp.int32)
    params = {"steps": zero, "sum": jnp.ones(())}
    return TrainState(zero, params, {}, jax.random.key(0), jnp.zeros(2, jnp.uint32), zero, zero)


def run(
    workdir, *, stops=(), killed_at=None, patience=0, evaluation_every=2, logging_every=1, per_call=1, broken=100,
    course=None,
):  # fmt: skip
    """Returns the last sum, the last checkpoint's step, the best one's, and the number of moments.

    Args:
        workdir: the workdir; the run resumes from its newest checkpoint.
        stops: the steps at which the run is asked to stop.
        killed_at: the number of the moment at which it is killed, before or after a line or a checkpoint.
        patience: the patience of early stopping.
        evaluation_every: steps between evaluations.
        logging_every: steps between lines.
        per_call: updates of a call.
        broken: the step whose batch is an error.
        course: called with the course.
    """
    moments = Moments(killed_at)
    evaluation = EvaluationConfig(every=evaluation_every, patience=patience)
    logging = LoggingConfig(every=logging_every, tensorboard=False)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), first_state())
    hparams = Hyperparameters.build(OptimizerConfig(), steps=STEPS, dropout=DropoutRates(), loss_weights={})
    with Checkpoints(workdir, CheckpointConfig(every=3)) as checkpoints:
        restored = checkpoints.restore(abstract)
        state = first_state() if restored is None else restored
        start = int(state.step)
        stages = Course(start, broken)
        if course is not None:
            course(stages)
        with MetricsWriter(workdir, logging, start) as writer:
            writer.write, checkpoints.save = moments(writer.write), moments(checkpoints.save)
            stopping = resumed(evaluation, checkpoints, workdir, Followed("eval/heldout/loss"), start)
            state = Loop(
                steps=STEPS, max_skipped=5, evaluation=evaluation, checkpoint=CheckpointConfig(every=3),
                logging=logging, hparams=hparams, course=stages, calls=CallPlan(per_call, (evaluation_every, 3)),
                budget=None, stopping=stopping, evaluator=Evaluator(), checkpoints=checkpoints, writer=writer,
                stop=types.SimpleNamespace(stop_at=lambda number: number in stops), timers=Timers(),
                watchdog=Watchdog(1e6), peak_flops=None, progress=False,
            ).run(state)  # fmt: skip
        return float(state.params["sum"]), checkpoints.steps[-1], checkpoints.best_step, moments.count


OPTIONS = {
    "whole": {},
    "stopped early": {"patience": 2, "evaluation_every": 1},
    "evaluated at the end": {"evaluation_every": 0},
    "few lines": {"logging_every": 4},
    "stopped early with few lines": {"patience": 2, "evaluation_every": 1, "logging_every": 100},
}


@pytest.fixture(params=["at once", "a call later"])
def reported(request, monkeypatch):
    """Metrics are read at once, as on a CPU, or while the next call computes, as on other devices."""
    if request.param == "a call later":
        monkeypatch.setattr(Made, "ended", False)


@pytest.fixture(scope="module", params=OPTIONS)
def whole(request, tmp_path_factory):
    """Returns the options, the results and the lines of an uninterrupted run."""
    options = OPTIONS[request.param]
    workdir = tmp_path_factory.mktemp("whole")
    result = run(workdir, **options)
    return options, result, untimed_lines(workdir)


def test_the_yardstick_is_as_planned(whole):
    options, (_, last, _, _), lines = whole
    assert last == (4 if "patience" in options else STEPS)
    evaluated = {0: [0, 6], 1: [0, 1, 2, 3, 4], 2: [0, 2, 4, 6]}[options.get("evaluation_every", 2)]
    assert [line["step"] for line in lines if "eval/heldout/loss" in line] == evaluated
    every, logged = options.get("logging_every", 1), [line["step"] for line in lines if "train/loss" in line]
    assert logged == [step for step in range(1, last + 1) if step % every == 0 or step in evaluated]


@pytest.mark.usefixtures("reported")
@pytest.mark.parametrize("stops", [*((k,) for k in range(1, STEPS + 1)), tuple(range(1, STEPS + 1))], ids=str)
def test_a_run_that_is_asked_to_stop_does_all_of_it_once(whole, tmp_path, stops):
    options, (params, last, _, _), lines = whole
    for stop in (s for s in stops if s < last or (s == last and "patience" not in options)):
        with pytest.raises(PreemptedError, match=f"step {stop}"):
            run(tmp_path, stops=(stop,), **options)
    found = run(tmp_path, **options)
    assert found[:2] == (params, last)
    assert untimed_lines(tmp_path) == lines
    # The best checkpoint is that with the least loss, whether the loss is known before or after the save.
    evaluated = {line["step"] for line in lines if "eval/heldout/loss" in line}
    steps = {*stops, *range(3, last, 3), last} & evaluated
    assert LOSSES[found[2]] == min(LOSSES[step] for step in steps if step <= last)


@pytest.mark.usefixtures("reported")
def test_a_run_killed_between_any_two_of_them_does_all_of_it_once(whole, tmp_path):
    """The run is killed at every moment; and it is asked to stop where an evaluation is due, and killed after that."""
    options, (params, last, _, moments), lines = whole
    for stops, number in [((), n) for n in range(moments)] + [((2,), n) for n in range(6)]:
        workdir = tmp_path / f"{len(stops)}-{number}"
        workdir.mkdir()
        if stops:
            with pytest.raises(PreemptedError):
                run(workdir, stops=stops, **options)
        with pytest.raises(Killed):
            run(workdir, killed_at=number, **options)
        assert run(workdir, **options)[:2] == (params, last), (stops, number)
        assert untimed_lines(workdir) == lines, (stops, number)


@pytest.mark.usefixtures("reported")
@pytest.mark.parametrize("per_call", [2, 3, 6])
def test_several_updates_in_a_call_change_nothing(whole, tmp_path, per_call):
    """Also where the run is asked to stop, or killed: it then stops after the call, and goes on with the same calls."""
    options, (params, last, best, moments), lines = whole
    made = []
    assert run(tmp_path / "whole", **options, per_call=per_call, course=made.append) == (params, last, best, moments)
    assert untimed_lines(tmp_path / "whole") == lines
    calls, step = made[0].calls, 0
    for updates in calls:
        assert updates == 1 or (updates == per_call and step % per_call == 0)
        step += updates
    assert step == last
    if options == OPTIONS["evaluated at the end"] and per_call == 3:
        assert calls == [3, 3]
    for stop in range(1, last):
        workdir = tmp_path / f"stop {stop}"
        with pytest.raises(PreemptedError) as caught:
            run(workdir, stops=(stop,), **options, per_call=per_call)
        stopped = int(str(caught.value).split()[3])
        assert stop <= stopped < stop + per_call
        assert run(workdir, **options, per_call=per_call)[:2] == (params, last)
        assert untimed_lines(workdir) == lines
    for number in range(moments):
        workdir = tmp_path / f"kill {number}"
        with pytest.raises(Killed):
            run(workdir, killed_at=number, **options, per_call=per_call)
        assert run(workdir, **options, per_call=per_call)[:2] == (params, last)
        assert untimed_lines(workdir) == lines


@pytest.mark.usefixtures("reported")
@pytest.mark.parametrize("per_call", [1, 3, 6])
@pytest.mark.parametrize("broken", [1, 2, 5, 6])
def test_all_batches_before_an_error_are_trained_on_and_saved(tmp_path, per_call, broken):
    options = {"evaluation_every": 0, "per_call": per_call}
    with pytest.raises(WorkerError, match=f"batch {broken}"):
        run(tmp_path / "run", broken=broken, **options)
    assert [line["step"] for line in untimed_lines(tmp_path / "run") if "train/loss" in line] == [*range(1, broken)]
    found = run(tmp_path / "run", **options)
    assert found[:2] == run(tmp_path / "whole", **options)[:2]
    assert untimed_lines(tmp_path / "run") == untimed_lines(tmp_path / "whole")


@pytest.mark.parametrize("per_call", [1, 2, 6])
@pytest.mark.parametrize("logging_every", [1, 4])
def test_a_lines_speed_is_that_of_its_own_steps(tmp_path, monkeypatch, per_call, logging_every):
    """Every step takes 100 seconds, and has ended when its call returns, as on a CPU."""

    def course(stages):
        clock = types.SimpleNamespace(perf_counter=lambda: stages.seconds)
        monkeypatch.setattr("lmjax.training.loop.time", clock)

    run(tmp_path, evaluation_every=0, logging_every=logging_every, per_call=per_call, course=course)
    rates = [line["train/steps_per_second"] for line in read_lines(tmp_path) if "train/loss" in line]
    assert rates == pytest.approx([0.01] * len(rates), rel=0.01)
    assert len(rates) == {1: 6, 4: 2}[logging_every]
