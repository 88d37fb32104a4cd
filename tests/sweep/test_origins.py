"""Runs that begin from other runs: arms are told by the fields of those, and seeds of those are seeds."""

import shutil

import pytest

from lmjax.config import from_json, resolve
from lmjax.runs.workdir import CONFIG
from lmjax.strict_json import write_json
from lmjax.sweep.arms import arms_of, with_shared
from lmjax.sweep.ledger import Ledger
from lmjax.sweep.origins import origin_fields, with_origins
from lmjax.sweep.render import markdown
from lmjax.sweep.report import sections
from lmjax.sweep.statistics import analyse, design
from lmjax.sweep.targets import name_targets
from lmjax.training.metrics import METRICS
from tests.sweep.test_report import run

RATES, SEEDS = (0.1, 0.2), (0, 1, 2)


@pytest.fixture
def origins(tmp_path):
    """The workdirs of a sweep of two learning rates and three seeds, by both."""
    points = [{"optimizer.learning_rate": rate, "seed": seed} for rate in RATES for seed in SEEDS]
    configs = [resolve(overrides={key: str(value) for key, value in point.items()}) for point in points]
    ledger, targets = Ledger(tmp_path / "first"), name_targets(points, configs, [["--seed=0"] for _ in points])
    ledger.write({}, {}, targets)
    for target in targets:
        workdir = ledger.workdir(target)
        workdir.mkdir()
        write_json(workdir / CONFIG, target.config.to_json())
        (workdir / METRICS).touch()
    return {(t.point["optimizer.learning_rate"], t.point["seed"]): ledger.workdir(t) for t in targets}


def begun(places, **fields):
    """Runs that begin from places; the effect is that of the learning rate of the origin."""
    return [run(f"run{i}", key[0], init_from=str(place), **fields) for i, (key, place) in enumerate(places.items())]


def labels(runs):
    return [(arm.label, len(arm.runs)) for arm in arms_of(with_shared(run) for run in with_origins(runs))]


def test_origins_of_a_sweep_are_told_by_its_fields_and_their_seeds_are_seeds(origins):
    assert labels(begun(origins)) == [("learning_rate=0.1", 3), ("learning_rate=0.2", 3)]


def test_the_noise_of_an_arm_holds_that_of_the_seeds_of_its_origins(origins):
    found = analyse(arms_of(with_shared(run) for run in with_origins(begun(origins))))
    assert [noise.source for noise in found.noise] == ["init_from.seed", "documents"]
    text = markdown("A sweep", sections(found))
    assert "The runs of an arm differ in init_from.seed alone" in text
    assert "Arms differ in" not in text, "the objective of an origin is not what is compared"


def test_what_a_design_can_detect_counts_the_seeds_of_origins(origins):
    fields = [{"init_from": str(place)} for place in origins.values()]
    assert "arms with one seed" in design(fields)
    assert "2 arms, 3 seeds each" in design(origin_fields(fields))


def test_seeds_of_the_run_and_of_its_origin_are_apart(origins):
    twice = [
        run(f"{i}-{seed}", init_from=str(place), seed=seed)
        for i, place in enumerate(origins.values())
        for seed in (5, 6)
    ]
    assert labels(twice) == [("learning_rate=0.1", 6), ("learning_rate=0.2", 6)]


def test_origins_that_belong_to_no_sweep_are_told_by_their_configs(origins, tmp_path):
    moved = {}
    for i, (key, place) in enumerate(origins.items()):
        moved[key] = shutil.copytree(place, tmp_path / f"moved{i}")
    assert labels(begun(moved)) == [("learning_rate=0.1", 3), ("learning_rate=0.2", 3)]


def test_a_folder_that_is_no_run_keeps_its_place(origins, tmp_path):
    (tmp_path / "bert").mkdir()
    folder = str(tmp_path / "bert")
    found = labels([*begun(origins), run("folder", init_from=folder), run("new", init_from=None)])
    assert found == [
        ("learning_rate=0.1", 3),
        ("learning_rate=0.2", 3),
        (f"init_from={folder}", 1),
        ("init_from=none", 1),
    ]


def test_origins_of_two_sweeps_are_told_by_their_configs_though_their_points_are_the_same(origins, tmp_path):
    other = shutil.copytree(tmp_path / "first", tmp_path / "second")
    second = {key: other / "runs" / place.name for key, place in origins.items()}
    both = [*begun(origins), *begun(second)]
    assert {count for _, count in labels(both)} == {1}, "copies cannot be told apart"
    for place in second.values():
        config = from_json(place / CONFIG)
        write_json(place / CONFIG, config.with_fields({"batch_size": 2 * config.batch_size}).to_json())
    assert {count for _, count in labels(both)} == {3}
    assert all("batch_size=" in label for label, _ in labels(both))


def test_origins_that_cannot_be_read_keep_their_places(origins):
    first = next(iter(origins.values()))
    (first / CONFIG).write_text("{")
    (first.parent.parent / "sweep.json").unlink()
    assert {count for _, count in labels(begun(origins))} == {1}
