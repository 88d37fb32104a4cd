"""Launching: which runs are trained, what is recorded, and what other processes and earlier commands change."""

import contextlib
import json
import threading
import time

import pytest

from lmjax.config import resolve
from lmjax.errors import BusyError, ConfigMismatchError, DataError, FlagError, PreemptedError
from lmjax.runs.workdir import lock_workdir
from lmjax.sweep.claims import claimed
from lmjax.sweep.launch import Launcher
from lmjax.sweep.ledger import RESULTS, Ledger, now
from lmjax.sweep.outcome import Outcome
from lmjax.sweep.progress import View
from lmjax.sweep.targets import name_targets
from lmjax.training.metrics import METRICS


def targets(count=4, **fields):
    points = [{"seed": seed, **fields} for seed in range(count)]
    configs = [resolve(overrides={key: str(value) for key, value in point.items()}) for point in points]
    return name_targets(points, configs, [[f"--seed={point['seed']}"] for point in points])


class Trainer:
    """Stands for the training of a group; `bad` seeds crash."""

    def __init__(self, bad=(), error=None):
        self.bad, self.error, self.calls = set(bad), error or RuntimeError("no memory"), []

    def __call__(self, configs, workdirs):
        self.calls.append([config.seed for config in configs])
        if self.bad & {config.seed for config in configs}:
            raise self.error
        return [Outcome(w, "done", 5, {"eval/a/loss": float("nan")}, 9, 8.0, 7.0) for w in workdirs]


def launched(folder, runs, trainer, program=lambda config: 0, **settings):
    ledger = Ledger(folder)
    ledger.write({}, {}, runs)
    Launcher(ledger, runs, program, trainer, **settings).run()
    return {name: result["status"] for name, result in ledger.results().items()}


def test_a_group_is_trained_at_once_and_each_run_has_a_line(tmp_path):
    trainer = Trainer()
    statuses = launched(tmp_path, targets(), trainer)
    assert trainer.calls == [[0, 1, 2, 3]]
    assert statuses == {f"seed={i}": "done" for i in range(4)}
    line = json.loads((tmp_path / RESULTS).read_text().splitlines()[1])
    assert (line["name"], line["workdir"], line["fields"]) == ("seed=1", "runs/seed=1", {"seed": 1})
    assert line["metrics"] == {"eval/a/loss": None}, "JSON has no NaN"
    assert {"steps", "tokens", "flops", "seconds", "commit", "group", "time"} <= line.keys()


def test_the_view_counts_the_steps_that_a_run_really_makes(tmp_path):
    """With epochs, they are others than those of its config."""
    ledger, runs = Ledger(tmp_path), targets(2)
    ledger.write({}, {}, runs)
    folder = ledger.workdir(runs[0])
    folder.mkdir(parents=True)
    (folder / METRICS).write_text(json.dumps({"step": 900, "train/loss": 1.0}) + "\n")
    steps = {run.name: 1200 for run in runs}
    assert "0 of 2 runs done; 38% of the steps" in View(ledger, runs, steps, None).line()


def test_runs_that_share_no_program_are_trained_apart_and_a_group_may_be_divided(tmp_path):
    trainer = Trainer()
    launched(tmp_path / "a", targets(5), trainer, lambda config: config.seed % 2)
    assert trainer.calls == [[0, 2, 4], [1, 3]]
    alone = Trainer()
    launched(tmp_path / "b", targets(3), alone, lambda config: None)
    assert alone.calls == [[0], [1], [2]]
    divided = Trainer()
    launched(tmp_path / "c", targets(5), divided, most=2)
    assert divided.calls == [[0, 1], [2, 3], [4]]


def test_a_process_that_is_started_again_does_not_try_what_crashed_since_the_launch(tmp_path):
    launched_at = now()
    launched(tmp_path, targets(), Trainer(bad={2}), since=launched_at)
    again = Trainer()
    launched(tmp_path, targets(), again, since=launched_at)
    assert again.calls == []


def test_a_run_that_crashes_does_not_stop_the_others_and_its_group_is_tried_in_halves(tmp_path):
    trainer = Trainer(bad={2})
    statuses = launched(tmp_path, targets(), trainer)
    assert trainer.calls == [[0, 1, 2, 3], [0, 1], [2, 3], [2], [3]]
    assert statuses == {"seed=0": "done", "seed=1": "done", "seed=2": "crashed", "seed=3": "done"}
    assert "RuntimeError: no memory" in Ledger(tmp_path).results()["seed=2"]["error"]


def test_what_has_ended_is_not_repeated_and_what_crashed_is_tried_once_by_the_next_command(tmp_path):
    launched(tmp_path, targets(), Trainer(bad={2}))
    again = Trainer(bad={2})
    launched(tmp_path, targets(), again)
    assert again.calls == [[2]]
    last = Trainer()
    assert launched(tmp_path, targets(5), last)["seed=2"] == "done"
    assert last.calls == [[2, 4]], "the sweep was given one more run"


def test_a_request_to_stop_ends_the_command_and_records_nothing(tmp_path):
    trainer = Trainer(bad={0}, error=PreemptedError("saved"))
    with pytest.raises(PreemptedError):
        launched(tmp_path, targets(), trainer)
    assert len(trainer.calls) == 1
    assert Ledger(tmp_path).results() == {}


def test_of_several_launchers_one_trains_each_run_though_its_result_is_recorded_after_its_workdir_is_free(
    tmp_path, monkeypatch
):
    # Its notes are files of a process, and here threads stand for processes.
    monkeypatch.setattr(Ledger, "training", lambda self, members: contextlib.nullcontext())
    ledger, runs, trained = Ledger(tmp_path), targets(8), []
    ledger.write({}, {}, runs)

    def train(configs, workdirs):
        for workdir in workdirs:
            workdir.mkdir(exist_ok=True)
        locks = [lock_workdir(workdir) for workdir in workdirs]
        trained.extend(config.seed for config in configs)
        for lock in locks:
            lock.close()
        time.sleep(0.05)
        return [Outcome(w, "done", 5, {}, 9, 8.0, 7.0) for w in workdirs]

    launchers = [Launcher(ledger, runs, lambda config: config.seed // 2, train, most=most) for most in (1, 2, None)]
    threads = [threading.Thread(target=launcher.run) for launcher in launchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trained) == list(range(8))
    assert len((tmp_path / RESULTS).read_text().splitlines()) == 8


def test_a_run_whose_result_came_after_the_results_were_read_is_not_given(tmp_path):
    ledger, runs, since = Ledger(tmp_path), targets(3), now()
    ledger.write({}, {}, runs)
    ended = Outcome(ledger.workdir(runs[1]), "done", 5, {}, 9, 8.0, 7.0)
    ledger.append(runs[1], ended, group="1", commit=None)
    with claimed(ledger, runs, since) as given, claimed(ledger, runs, since) as others:
        assert [[each.name for each in found] for found in (given, others)] == [["seed=0", "seed=2"], []]
    with claimed(ledger, runs, since, 1) as again:
        assert [each.name for each in again] == ["seed=0"], "claims end with the context"


def test_runs_that_another_process_trains_are_left_to_it(tmp_path):
    runs, ledger = targets(3), Ledger(tmp_path)
    ledger.write({}, {}, runs)
    workdir = ledger.workdir(runs[1])
    workdir.mkdir()
    lock = lock_workdir(workdir)

    def other():
        time.sleep(1.5)
        ledger.append(runs[1], Outcome(workdir, "done", 5, {}, 9, 8.0, 7.0), group="1", commit=None)
        lock.close()

    thread = threading.Thread(target=other)
    thread.start()
    trainer = Trainer()
    statuses = launched(tmp_path, runs, trainer)
    thread.join()
    assert trainer.calls == [[0, 2]]
    assert statuses == {f"seed={i}": "done" for i in range(3)}


def test_a_run_whose_process_was_killed_is_taken_over(tmp_path):
    """It waits while the lock is held, and takes the run as soon as it is free."""
    runs, ledger = targets(1), Ledger(tmp_path)
    ledger.write({}, {}, runs)
    ledger.workdir(runs[0]).mkdir()
    lock = lock_workdir(ledger.workdir(runs[0]))
    threading.Timer(0.5, lock.close).start()
    assert launched(tmp_path, runs, Trainer()) == {"seed=0": "done"}


def test_a_run_that_is_claimed_between_the_look_and_the_claim_is_not_a_crash(tmp_path):
    class Once(Trainer):
        def __call__(self, configs, workdirs):
            if not self.calls:
                self.calls.append("busy")
                raise BusyError("another process trains there")
            return super().__call__(configs, workdirs)

    assert set(launched(tmp_path, targets(2), Once()).values()) == {"done"}


def test_a_result_is_recorded_once(tmp_path):
    runs, ledger = targets(1), Ledger(tmp_path)
    ledger.write({}, {}, runs)
    for seconds in (1.0, 2.0):
        ledger.append(runs[0], Outcome(tmp_path, "done", 5, {}, 9, 8.0, seconds), group="1", commit=None)
    assert len((tmp_path / RESULTS).read_text().splitlines()) == 1


def test_a_line_that_a_kill_cut_short_harms_no_other(tmp_path):
    runs, ledger = targets(2), Ledger(tmp_path)
    ledger.write({}, {}, runs)
    (tmp_path / RESULTS).write_text('{"name": "seed=0", "sta')
    trainer = Trainer()
    assert launched(tmp_path, runs, trainer) == {"seed=0": "done", "seed=1": "done"}
    assert trainer.calls == [[0, 1]]


def test_what_was_asked_is_read_back_as_it_was(tmp_path):
    runs, ledger = targets(2), Ledger(tmp_path)
    ledger.write({"steps": 5}, {"metric": "eval/a/loss"}, runs)
    settings, again = ledger.read()
    assert settings == {"metric": "eval/a/loss", "base": {"steps": 5}}
    assert [each.config for each in again] == [each.config for each in runs]
    assert [each.arguments for each in again] == [("--seed=0",), ("--seed=1",)]


def test_points_may_be_added_and_the_meaning_of_a_name_may_not_change(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.write({}, {}, targets(2))
    ledger.write({}, {}, targets(3))
    assert len(ledger.read()[1]) == 3
    with pytest.raises(ConfigMismatchError, match=r"its run seed=0 is another one: steps: \d+ there, 7 now"):
        ledger.write({}, {}, targets(3, steps=7))
    ledger.write({}, {}, targets(3, **{"data.prefetch": 2}))


def test_what_all_runs_are_given_may_not_change(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.write({"steps": 5}, {}, targets(2, steps=5))
    with pytest.raises(ConfigMismatchError, match="whose runs all have steps: 5, and now it is 6"):
        ledger.write({"steps": 6}, {}, targets(2))
    with pytest.raises(ConfigMismatchError, match="steps: 5, and now it is not given"):
        ledger.write({}, {}, targets(2))
    ledger.write({}, {}, targets(2, steps=5))


def test_a_folder_with_something_else_is_refused_and_a_damaged_record_named(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(FlagError, match="exists and holds no sweep"):
        Ledger(tmp_path).write({}, {}, targets(1))
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(DataError, match=r"sweep\.json: cannot be read"):
        Ledger(tmp_path).read()
