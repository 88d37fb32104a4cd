"""A search: its trials are runs of a sweep, it learns from their results, and a kill loses and repeats nothing."""

import json
import math

import pytest

from lmjax import cli
from lmjax.errors import BusyError, ConfigMismatchError, PreemptedError
from lmjax.sweep.grid import parse_grid
from lmjax.sweep.ledger import Ledger
from lmjax.sweep.search import Search, has_ranges, searching
from lmjax.sweep.space import between, chain, param, product, zipped
from tests.commands.test_sweep import TINY

pytest.importorskip("optuna", reason="the search needs optuna (extra: search)")

SPACE = product(between("learning_rate", 1e-4, 1e-1, log=True), param("norm", ["pre", "post"]))


def loss(point):
    """Returns the squared distance from a learning rate of 1e-2 in tenfolds; worse with norm=post."""
    return (math.log10(point["learning_rate"]) + 2) ** 2 + 2 * (point["norm"] == "post")


def result(value, status="done", steps=10):
    return {"name": "run", "status": status, "steps": steps, "metrics": {} if value is None else {"eval/a/loss": value}}


OPENED = []


@pytest.fixture(autouse=True)
def _closed():
    yield
    while OPENED:
        OPENED.pop().close()


def search(folder, space=SPACE, kind="tpe", trials=30):
    OPENED.append(Search(folder, space, kind, trials, falling=True))
    return OPENED[-1]


def searched(folder, kind="tpe", trials=30):
    """Returns the points of a whole search."""
    found, there = [], search(folder, kind=kind, trials=trials)
    while points := there.ask(3):
        for number, point in points.items():
            there.tell(number, result(loss(point)), "eval/a/loss")
        found += points.values()
    return found


def test_a_search_learns_from_its_results():
    points = searched(None, trials=60)
    assert len(points) == 60
    early, late = (sum(map(loss, part)) / len(part) for part in (points[:10], points[-20:]))
    assert late < early / 2
    assert min(map(loss, points)) < 0.1
    assert all(1e-4 <= point["learning_rate"] <= 1e-1 for point in points)


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_rounds_draw_other_points_and_a_search_is_the_same_each_time(tmp_path, kind):
    for name in "ab":
        (tmp_path / name).mkdir()
    points = searched(tmp_path / "a", kind, 9)
    assert points == searched(tmp_path / "b", kind, 9)
    assert len({point["learning_rate"] for point in points}) == 9


def test_a_killed_search_goes_on_with_its_open_trials(tmp_path):
    first = search(tmp_path, trials=5)
    asked = first.ask(3)
    numbers = list(asked)
    first.tell(numbers[0], result(1.0), "eval/a/loss")
    again = search(tmp_path, trials=5)
    found = again.ask(3)
    assert {n: found[n] for n in numbers[1:]} == {n: asked[n] for n in numbers[1:]}
    assert len(found) == 3
    for number in found:
        again.tell(number, result(1.0), "eval/a/loss")
    assert len(search(tmp_path, trials=5).ask(3)) == 1


def test_what_did_not_end_well_is_no_result(tmp_path):
    there = search(tmp_path, trials=4)
    ends = [result(None, "crashed"), result(9.0, "diverged"), result(3.0, "stopped", 4), result(2.0)]
    for number, ended in zip(there.ask(4), ends, strict=True):
        there.tell(number, ended, "eval/a/loss")
    trials = search(tmp_path, trials=4)._study.trials
    assert [trial.state.name for trial in trials] == ["FAIL", "FAIL", "PRUNED", "COMPLETE"]
    assert trials[2].intermediate_values == {4: 3.0}
    assert not search(tmp_path, trials=4).ask(4)


def test_another_space_in_the_same_folder_is_refused(tmp_path):
    search(tmp_path)
    with pytest.raises(ConfigMismatchError, match=r"holds a search over learning_rate=0.0001\.\.0\.1:log"):
        search(tmp_path, between("learning_rate", 1e-5, 1e-1, log=True))


def test_points_that_are_no_product_are_chosen_as_a_whole(tmp_path):
    space = chain(
        zipped(param("width", [1, 2]), param("depth", [3, 4])),
        product(param("width", [8]), between("depth", 1, 5)),
        product(param("width", [9]), between("depth", 0.5, 1.5)),
    )
    points = list(search(tmp_path, space, "random", 40).ask(40).values())
    assert {p["width"] for p in points} == {1, 2, 8, 9}
    assert all(p["depth"] == p["width"] + 2 for p in points if p["width"] < 3)
    assert {p["depth"] for p in points if p["width"] == 8} <= set(range(1, 6))
    assert all(0.5 <= p["depth"] <= 1.5 and isinstance(p["depth"], float) for p in points if p["width"] == 9)


def test_the_rounds_of_hyperband_begin_to_halve_at_other_rungs(tmp_path):
    there = search(tmp_path, kind="hyperband")
    assert [there.rungs(i, (2, 4)) for i in range(4)] == [(2, 4), (4,), (), (2, 4)]
    assert search(tmp_path).rungs(1, (2, 4)) == (2, 4)


def test_one_process_searches_in_a_folder(tmp_path):
    with searching(tmp_path), pytest.raises(BusyError, match="another process searches there"), searching(tmp_path):
        pass


def test_ranges_are_read_from_a_grid():
    space = parse_grid("optimizer.learning_rate=1e-4..1e-2:log;model.num_layers=2..6;objective=mlm|mlm,nsp")
    assert has_ranges(space)
    assert str(space.points[0]["optimizer.learning_rate"]) == "0.0001..0.01:log"
    assert space.points[0]["model.num_layers"].low == 2
    assert not has_ranges(parse_grid("data.train=../a.txt,./b.txt"))


def test_a_search_trains_runs_like_any_other(tmp_path, capsys, monkeypatch):
    argv = ["sweep", "--grid=optimizer.learning_rate=1e-4..1e-2:log", "--search=tpe", "--trials=2", "--members=1",
            "--steps=2", "--run", "--noprogress",
            f"--workdir={tmp_path}", *TINY]  # fmt: skip
    from lmjax.commands import sweep

    launched, launch = [], sweep._launch

    def stopped(values, ledger, costs, asked, targets):
        launched.append([target.name for target in targets])
        if len(launched) == 1:
            raise PreemptedError("stopped")
        launch(values, ledger, costs, asked, targets)

    monkeypatch.setattr(sweep, "_launch", stopped)
    with pytest.raises(PreemptedError):
        cli.run(argv)
    cli.run(argv)
    assert launched[1] == launched[0]
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert {line["status"] for line in lines} == {"done"}
    assert "the best of 2 runs by the loss of the first set" in capsys.readouterr().out
    cli.run(argv)
    assert len(launched) == 3
    assert len(Ledger(tmp_path).results()) == 2
