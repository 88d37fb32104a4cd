"""A time budget: runs end on time on a machine whose speed changes, and a resumed run has the remaining time."""

import json

import pytest

from lmjax.commands.train import train
from lmjax.errors import DataError
from lmjax.training import budget as budget_module
from lmjax.training.budget import UNPLANNED, Budget
from lmjax.training.metrics import Timers, read_metrics

pytestmark = pytest.mark.long


class Machine:
    """A clock that a simulated run advances."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(budget_module.time, "perf_counter", lambda: self.now)
        self.timers = Timers()

    def spend(self, purpose, seconds):
        self.now += seconds
        self.timers.seconds[purpose] += seconds
        self.timers.counts[purpose] += 1

    def budget(self, path, seconds=600.0, step=0):
        result = Budget(seconds, path / "plan.jsonl", evaluation_every=100, checkpoint_every=250, timers=self.timers)
        result.open(step)
        return result

    def run(self, budget, step, seconds_per_step, until=None):
        """Returns the last step of a simulated run with this time per step; it saves and evaluates as configured."""
        while step < min(budget.total, until or UNPLANNED):
            step += 1
            self.now += seconds_per_step(step)
            saving = step % budget.checkpoint_every == 0
            if budget.due(step) or saving:
                budget.plan(step)
            if step % 100 == 0 or step == budget.total:
                self.spend("evaluation", 4.0)
            if saving or step == budget.total:
                self.spend("checkpoint", 1.0)
        return step


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    "speed",
    [lambda step: 0.2, lambda step: 0.4 if step % 400 > 200 else 0.2, lambda step: 0.1 if step < 1000 else 0.3],
    ids=["even", "swings", "slows"],
)
def test_a_run_ends_with_its_budget_whatever_the_speed(machine, tmp_path, speed):
    budget = machine.budget(tmp_path)
    machine.spend("compilation", 30.0)
    last = machine.run(budget, 0, speed)
    assert machine.now - 1000 == pytest.approx(600, rel=0.03)
    assert last == budget.total


def test_the_first_plan_is_right_where_the_speed_is_even(machine, tmp_path):
    """Compilation counts towards the budget but not towards the time of a step: 570 seconds are left."""
    budget = machine.budget(tmp_path)
    machine.spend("compilation", 30.0)
    machine.spend("evaluation", 4.0)
    machine.run(budget, 0, lambda step: 0.2, until=5)
    expected = 5 + (600 - 30 - 4 - 1.0 - 4) / (0.2 + 4 / 100)  # no checkpoint was seen yet
    assert budget.total == pytest.approx(expected, abs=2)


def plans(path):
    return [json.loads(line) for line in (path / "plan.jsonl").read_text().splitlines()]


def test_plans_are_written_down_and_few(machine, tmp_path):
    budget = machine.budget(tmp_path)
    machine.run(budget, 0, lambda step: 0.2)
    lines = plans(tmp_path)
    assert 40 < len(lines) < 80
    assert lines[-1]["total"] == budget.total
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)


def test_a_resumed_run_has_the_time_that_its_checkpoint_left(machine, tmp_path):
    machine.run(machine.budget(tmp_path), 0, lambda step: 0.2, until=1100)
    used = next(line["seconds"] for line in plans(tmp_path) if line["step"] == 1000)
    machine.now += 86_400
    resumed = machine.budget(tmp_path, step=1000)
    assert 1000 < resumed.total < UNPLANNED, "before a measurement, the last plan applies"
    began = machine.now
    machine.run(resumed, 1000, lambda step: 0.2)
    assert used + machine.now - began == pytest.approx(600, rel=0.02)
    steps = [line["step"] for line in plans(tmp_path)]
    assert steps == sorted(set(steps)), "plans of lost steps are still in the file"


@pytest.mark.parametrize("value", ['"soon"', "[]", "true", "-1", "NaN", "1e999", "1" + "0" * 400])
def test_a_damaged_plan_is_one_error(machine, tmp_path, value):
    (tmp_path / "plan.jsonl").write_text(f'{{"step": 3, "seconds": 1.0, "total": {value}}}\n')
    with pytest.raises(DataError, match=r"plan\.jsonl: the last plan has total=.*remove it"):
        machine.budget(tmp_path, step=5)


def test_a_new_stage_is_measured_anew(machine, tmp_path):
    budget = machine.budget(tmp_path)
    machine.run(budget, 0, lambda step: 0.05, until=300)
    budget.forget(300)
    machine.run(budget, 300, lambda step: 0.2, until=305)
    line = plans(tmp_path)[-1]
    assert (line["step"], line["step_seconds"]) == (305, pytest.approx(0.2))


def test_a_real_run_ends_in_time_with_its_schedule_finished(tiny, tmp_path):
    """Most of these seconds are compilation; the steps in the remaining time follow the plan to the last step."""
    config = tiny(
        minutes=0.25, evaluation__every=100, checkpoint__every=200, optimizer__schedule="linear", model__num_layers=1
    )
    workdir = train(config, tmp_path / "run", progress=False)
    lines = plans(workdir)
    assert lines[-1]["seconds"] == pytest.approx(15, rel=0.2)
    steps, rates = read_metrics(workdir, "train/learning_rate")
    assert steps[-1] == lines[-1]["total"]
    # If the machine slows down at the end, the last plan shortens the schedule.
    peak = config.optimizer.learning_rate
    assert rates[-1] == pytest.approx(config.optimizer.final_ratio * peak, abs=0.1 * peak)
    before = (workdir / "metrics.jsonl").read_text()
    train(config, workdir, progress=False)
    assert (workdir / "metrics.jsonl").read_text() == before, "a finished run was trained further"
