"""Averages of runs and of checkpoints are workdirs, and models that do not fit are refused."""

import json

import jax
import numpy as np
import pytest

import lmjax
from lmjax.cli import run
from lmjax.errors import FlagError
from lmjax.model.parameters import flat
from lmjax.runs.pretrained import open_pretrained, storage_mesh


@pytest.fixture(scope="module")
def classifiers(tiny, tmp_path_factory):
    """A base without a classifier, and two classifiers that began with it; one has its layers unrolled."""
    folder = tmp_path_factory.mktemp("runs")
    quick = {"model__architecture": "encoder", "evaluation__batches": 1, "evaluation__every": 0, "model__num_layers": 2}
    base = lmjax.train(tiny("mlm", steps=1, **quick), folder / "base", progress=False)
    for name in ("a", "dev"):
        lines = [json.dumps({"text": f"{'no' if i % 2 else 'yes'} {i}", "label": i % 2}) for i in range(32)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    for seed, scan in ((0, "true"), (1, "false")):
        config = tiny("classification", data__train=folder / "a.jsonl", data__eval=f"dev={folder / 'dev.jsonl'}",
                      init_from=base, tokenizer__path=base, seed=seed, steps=4, checkpoint__every=2,
                      optimizer__warmup_steps=0, optimizer__learning_rate=0.01, model__vocab_size=192,
                      model__scan_layers=scan, **quick)  # fmt: skip
        lmjax.train(config, folder / f"run{seed}", progress=False)
    return folder


def arrays(place, step=None):
    source = open_pretrained(place, step)
    config = source.config.with_fields({"scan_layers": True})
    return {
        p: np.asarray(x)
        for p, x in flat(jax.device_get(source.params(config, storage_mesh(config, source.heads)))).items()
    }


def average(folder, to, *flags, models="run0,run1"):
    names = ",".join(str(folder / name) for name in models.split(","))
    return run(["average", f"--models={names}", f"--to={to}", *flags])


def test_the_mean_of_two_runs_is_a_workdir_like_any_other(classifiers, tmp_path, capsys):
    workdir = average(classifiers, tmp_path / "mean", "--weights=3,1")
    one, other, found = (arrays(p) for p in (classifiers / "run0", classifiers / "run1", workdir))
    for path, x in found.items():
        np.testing.assert_allclose(x, 0.75 * one[path] + 0.25 * other[path], atol=1e-6, err_msg=path)
    assert "0.7500" in capsys.readouterr().out
    made = json.loads((workdir / "made_of.json").read_text())
    assert [m["place"] for m in made["models"]] == [str(classifiers / f"run{i}") for i in range(2)]
    assert [m["weight"] for m in made["models"]] == [0.75, 0.25]
    predicted = run(["predict", f"--workdir={workdir}", f"--data={classifiers / 'dev.jsonl'}"])
    assert {record["label"] for record in predicted} <= {"0", "1"}
    results = run(["evaluate", f"--workdir={workdir}", f"--data=dev={classifiers / 'dev.jsonl'}"])
    assert 0 <= results["dev"]["accuracy"] <= 1
    again = average(tmp_path, tmp_path / "again", models="mean,mean")
    np.testing.assert_allclose(arrays(again)["embedding/table"], found["embedding/table"], atol=1e-6)


def test_checkpoints_of_one_run_are_averaged_by_their_steps(classifiers, tmp_path):
    workdir = average(classifiers, tmp_path / "late", models="run0@all")
    two, four = (arrays(classifiers / "run0", step) for step in (2, 4))
    for path, x in arrays(workdir).items():
        np.testing.assert_allclose(x, (two[path] + four[path]) / 2, atol=1e-6, err_msg=path)


def test_a_greedy_soup_is_no_worse_than_its_best_model_on_the_development_set(classifiers, tmp_path, capsys):
    workdir = average(classifiers, tmp_path / "soup", "--method=greedy", models="run0@2,run0@4,run1")
    made = json.loads((workdir / "made_of.json").read_text())
    best = int(np.argmin(made["costs"]))
    assert made["models"][best]["weight"] > 0
    written = [json.loads(line) for line in (classifiers / "run0" / "metrics.jsonl").read_text().splitlines()]
    known = [line["eval/dev/loss"] for line in written if line.get("step") == 4 and "eval/dev/loss" in line][-1]
    assert len(made["costs"]) == 3
    assert abs(made["costs"][1] - known) < 0.2, "the cost is that of the run's own evaluation, over the whole set"
    assert "cost alone" in capsys.readouterr().out


def test_task_vectors_and_the_spherical_average(classifiers, tmp_path):
    base, one, other = (arrays(classifiers / name) for name in ("base", "run0", "run1"))
    workdir = average(classifiers, tmp_path / "sum", "--method=task_vectors", f"--base={classifiers / 'base'}",
                      "--weights=1,-0.5")  # fmt: skip
    found, path = arrays(workdir), "backbone/stack/layers/mlp/up/kernel"
    np.testing.assert_allclose(found[path], base[path] + (one[path] - base[path]) - 0.5 * (other[path] - base[path]),
                               atol=1e-5)  # fmt: skip
    head = "classifier_head/classifier/kernel"
    np.testing.assert_allclose(found[head], (one[head] + other[head]) / 2, atol=1e-6)
    workdir = average(classifiers, tmp_path / "arc", "--method=spherical")
    assert not np.allclose(arrays(workdir)[path], (one[path] + other[path]) / 2, atol=1e-7)


@pytest.mark.parametrize(
    ("models", "flags", "said"),
    [
        ("run0,base", [], r"base does not fit .*run0: it was trained on .*mlm.* and the first on .*classification"),
        ("run0,run1", ["--weights=1"], "--weights names 1 weights, and --models 2 models"),
        ("run0,run1", ["--weights=1,-1"], "must be positive; task vectors alone"),
        ("run0,run1", ["--weights=1,x"], "--weights=1,x"),
        ("run0,run1", ["--method=task_vectors"], "--base=: is for --method=task_vectors alone, which needs it"),
        ("run0", ["--method=spherical"], "takes two models, and --models names 1"),
        ("run0,run1", ["--method=greedy", "--weights=1,1"], "the greedy soup gives equal weights"),
        ("run0,run1", ["--eval_data=dev.jsonl"], "is for --method=greedy"),
        ("run0,nowhere", [], "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused(classifiers, tmp_path, models, flags, said):
    with pytest.raises(FlagError, match=said):
        average(classifiers, tmp_path / "x", *flags, models=models)
    assert not (tmp_path / "x").exists()


def test_models_of_other_shapes_or_tokenizers_are_refused(classifiers, tiny, tmp_path):
    quick = {"model__architecture": "encoder", "evaluation__batches": 1, "evaluation__every": 0, "steps": 1,
             "model__num_layers": 2}  # fmt: skip
    for name, fields, said in (
        ("wide", {"model__mlp_dim": 48}, r"model\.mlp_dim is 48 there and 32 in the first"),
        ("bpe", {"tokenizer__kind": "bpe", "tokenizer__vocab_size": 180}, "their tokenizers differ"),
    ):
        lmjax.train(tiny("mlm", **quick, **fields), tmp_path / name, progress=False)
        with pytest.raises(FlagError, match=said):
            run(["average", f"--models={classifiers / 'base'},{tmp_path / name}", f"--to={tmp_path / 'x'}"])
    with pytest.raises(FlagError, match="exists and is not empty"):
        average(classifiers, classifiers / "run1")
