"""The best checkpoint: that of the metric which the run follows, among those that are saved."""

import json
import math

import numpy as np
import pytest

import lmjax
from lmjax.cli import run as command
from lmjax.errors import CheckpointError, FlagError
from lmjax.model.parameters import flat
from lmjax.runs.best import best_step
from lmjax.training.checkpoint import Checkpoints
from lmjax.training.evaluate import followed


def evaluations(folder, lines, saved=()):
    """Writes what `best_step` reads of a workdir: metrics.jsonl and the folders of checkpoints."""
    for step in saved:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    trained = [{"step": 1, "train/loss": 0.1, "train/classification/loss": 0.1}]
    content = [json.dumps(line) for line in [*trained, *lines]]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in content))


def line(step, a, b, f1, mae=0.0):
    return {"step": step, "eval/a/loss": a, "eval/a/classification/loss": a, "eval/a/classification/f1": f1,
            "eval/a/classification/mae": mae, "eval/b/loss": b}  # fmt: skip


LINES = [line(0, 9, 9, 0.0), line(2, 3, 1, 0.6, 3), line(4, 1, 2, 0.8, 2), line(6, 2, 2, 0.8, 1), line(8, 0, 0, 1.0, 0)]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("loss", 4), ("b/loss", 2), ("classification/f1", 4), ("a/classification/f1", 4), ("classification/mae", 6)],
)
def test_it_is_the_best_of_those_that_are_saved(tiny, tmp_path, metric, expected):
    """Step 8 would be the best of all, but is not there; of equal values the earliest counts."""
    evaluations(tmp_path, LINES, (2, 4, 6))
    assert best_step(tmp_path, tiny("classification", evaluation__metric=metric)) == expected


def test_values_that_are_not_finite_are_not_the_best(tiny, tmp_path):
    evaluations(tmp_path, [line(2, None, 0, 0), line(4, 5, 0, 0)], (2, 4))
    assert best_step(tmp_path, tiny("classification")) == 4


@pytest.mark.parametrize(
    ("lines", "metric", "said"),
    [
        ([], "loss", r"no evaluation in metrics.jsonl; name one of the checkpoints with --step=2 or 4"),
        ([line(3, 1, 1, 1)], "loss", r"no checkpoint of .* has a finite value of eval/a/loss"),
        ([line(4, 1, 1, 1)], "nonsense", r"has a finite value of eval/a/nonsense \(--config.evaluation.metric\)"),
    ],
)
def test_a_run_without_one_says_what_there_is(tiny, tmp_path, lines, metric, said):
    evaluations(tmp_path, lines, (2, 4))
    with pytest.raises(CheckpointError, match=said):
        best_step(tmp_path, tiny("classification", evaluation__metric=metric))


def test_models_open_with_it(tiny, tmp_path):
    """In Python and by flag; it is the checkpoint that the run itself keeps as the best."""
    fields = {"evaluation__every": 2, "checkpoint__every": 2, "checkpoint__keep": 9, "steps": 6}
    config = tiny(**fields, optimizer__learning_rate=0.01)
    workdir = lmjax.train(config, tmp_path / "run", progress=False)
    path = workdir / "metrics.jsonl"
    written = [json.loads(each) for each in path.read_text().splitlines()]
    values = {0: 9.0, 2: 4.0, 4: 1.0, 6: 2.0}
    changed = [
        each | ({"eval/heldout/loss": values[each["step"]]} if "eval/heldout/loss" in each else {}) for each in written
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in changed))
    best, fourth, newest = (flat(lmjax.load_model(workdir, step=step).params) for step in ("best", 4, None))
    for name, x in best.items():
        np.testing.assert_array_equal(x, fourth[name])
    assert any(not np.array_equal(x, newest[name]) for name, x in best.items())
    with Checkpoints(workdir, config.checkpoint) as own:
        metric = followed("loss", ["heldout"], ())
        for each in changed:
            own.note(each["step"], metric.cost(each.get("eval/heldout/loss", math.nan)))
        assert own.best_step == best_step(workdir, config) == 4
    out = command(["convert", f"--workdir={workdir}", f"--to={tmp_path / 'out'}", "--step=best"])
    for name, x in flat(lmjax.load_model(out).params).items():
        np.testing.assert_array_equal(x, fourth[name])
    with pytest.raises(FlagError, match=r"--step=best: .* is a checkpoint of Hugging Face, which has no steps"):
        lmjax.load_model(out, step="best")
    with pytest.raises(FlagError, match="--step=newest: give the number of a step, or best"):
        command(["convert", f"--workdir={workdir}", f"--to={tmp_path / 'other'}", "--step=newest"])
