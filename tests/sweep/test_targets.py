"""Names of runs: short, unique, safe as file names, and the same when a sweep grows."""

import shlex

import pytest

from lmjax.config import resolve
from lmjax.errors import FlagError
from lmjax.sweep.targets import name_targets


def named(points, known=None):
    configs = [resolve(overrides={k: str(v) for k, v in point.items() if k != "preset"}) for point in points]
    return name_targets(points, configs, [[]] * len(points), known)


def names(points, known=None):
    return [target.name for target in named(points, known)]


def test_a_name_shows_the_fields_that_differ_and_only_them():
    points = [{"steps": 7, "optimizer.learning_rate": text, "seed": seed} for text in ("1e-3", "3e-3") for seed in "01"]
    targets = named(points)
    assert [target.name for target in targets] == [
        f"learning_rate={lr}-seed={seed}" for lr in ("0.001", "0.003") for seed in (0, 1)
    ]
    assert targets[0].fields == {"optimizer.learning_rate": 0.001, "seed": 0}


def test_fields_of_the_same_last_name_are_told_apart():
    points = [{"evaluation.every": 5, "logging.every": 6}, {"evaluation.every": 7, "logging.every": 8}]
    assert names(points)[0] == "evaluation.every=5-logging.every=6"


def test_a_single_run_shows_what_it_is_given():
    assert names([{"seed": 3}]) == ["seed=3"]
    assert names([{}]) == ["run"]


def test_names_are_safe_and_differ_where_values_are_long_or_alike():
    paths = ["a/data.txt", "b/data.txt", "c/" + "x" * 90 + ".txt", "c/" + "x" * 90 + "y.txt", "it's; a$b.txt"]
    found = names([{"data.train": path} for path in paths])
    assert len({name.lower() for name in found}) == len(paths)
    assert all(shlex.quote(name) == name and len(name) < 100 for name in found)


def test_a_run_keeps_its_name_when_a_field_is_added_to_the_sweep():
    old = named([{"optimizer.learning_rate": "1e-3"}, {"optimizer.learning_rate": "3e-3"}])
    known = {target.name: target.config for target in old}
    points = [{"optimizer.learning_rate": lr, "seed": seed} for lr in ("1e-3", "3e-3") for seed in (0, 1)]
    assert names(points, known) == [
        "learning_rate=0.001", "learning_rate=0.001-seed=1", "learning_rate=0.003", "learning_rate=0.003-seed=1",
    ]  # fmt: skip


def test_a_new_run_never_gets_the_name_of_another_one():
    first, second = names([{"seed": 0}, {"seed": 1}], {"seed=1": resolve(overrides={"seed": "0"})})
    assert first == "seed=1"
    assert second.startswith("seed=1-")


def test_names_of_many_fields_are_short_and_differ():
    fields = ("steps", "batch_size", "optimizer.weight_decay", "optimizer.learning_rate", "model.embedding.types",
              "evaluation.every", "logging.every", "checkpoint.every", "task.z_loss")  # fmt: skip
    points = [
        {key: 0 if key.endswith(("types", "z_loss")) else 16 for key in fields} | {"seed": seed} for seed in (0, 1)
    ]
    points.append({})
    found = names(points)
    assert len(set(found)) == 3
    assert max(map(len, found)) < 90


def test_a_run_that_differs_only_in_how_fast_it_reads_is_the_same_run():
    known = {"mine": resolve(overrides={"data.workers": "2"})}
    assert names([{"seed": 0}, {"seed": 1}], known) == ["mine", "seed=1"]


def test_two_points_that_are_the_same_run_are_an_error():
    with pytest.raises(FlagError, match=r"learning_rate=1e-3 and .*learning_rate=0.001 are the same run"):
        names([{"optimizer.learning_rate": "1e-3"}, {"optimizer.learning_rate": "0.001"}])
