"""Regression: standardised targets, predictions in the data's own units, and what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import lmjax
from lmjax.errors import DataError
from lmjax.objectives.records import TokenRecord
from lmjax.objectives.regression import Regression, RegressionConfig
from lmjax.runs.build import build
from lmjax.training.metrics import read_lines

pytestmark = pytest.mark.usefixtures("all_devices")

RECORDS = [{"text": f"{'ab'[i % 2] * 3} {i % 4}", "score": 100.0 + 7 * (i % 4)} for i in range(32)]


@pytest.fixture
def regress(tiny, tmp_path):
    """A function from lines of the training data, and fields, to a config; the evaluation set has the same records."""

    def make(records=RECORDS, kind="encoder", **fields):
        path, held = tmp_path / "train.jsonl", tmp_path / "held.jsonl"
        for each in (path, held):
            each.write_text("".join(json.dumps(r) + "\n" for r in records))
        values = {"data__train": path, "data__eval": f"dev={held}", "model__architecture": kind}
        return tiny("regression", **values | fields)

    return make


def test_targets_are_standardised_by_the_training_data(regress, tmp_path):
    records = [{"text": "", "x": 1, "y": -5.5}, {"text": "b", "x": 3, "y": 0.5}]
    run = build(regress(records, task__regression__targets="x,y"), tmp_path / "run")
    assert json.loads((tmp_path / "run/means.json").read_text()) == {"means": [2, -2.5]}
    assert json.loads((tmp_path / "run/deviations.json").read_text()) == {"deviations": [1, 3]}
    assert run.config.model.head.labels == 2
    rows = [run.train_examples(i, np.random.default_rng(0)) for i in range(2)]
    assert [row["scores"].tolist() for row in rows] == [[-1, -1], [1, 1]]
    given = build(regress(records, task__regression__targets="x,y", task__regression__means="0,0"), tmp_path / "given")
    assert (given.config.task.regression.means, given.config.task.regression.deviations) == ((0, 0), (1, 3))


def test_the_loss_is_the_mean_squared_error_of_standardised_targets(forward_of, tokenizer):
    config = RegressionConfig(targets=("x", "y"), means=(2.0, 0.0), deviations=(4.0, 0.5))
    task = Regression(config, tokenizer, "encoder", 8, 8, 0)
    values = {"scores": jnp.array([[1.0, 2], [0, 0], [7, 7]]), "label_weights": jnp.array([1.0, 1, 0])}
    outputs = jnp.array([[1.0, 1], [2, 0], [jnp.nan, 0]])
    forward = forward_of(values, states=lambda b: None, classifier=outputs)
    found = task.losses(forward, values)["regression"]
    assert (float(found.loss), float(found.weight), found.correct) == (0.5 + 2.0, 2, None)
    made = [np.asarray(row, np.float64) for row in task.outputs(forward, values)["standardised"]]
    record = TokenRecord({}, {"x": 6.0, "y": 1.0})
    assert task.predict(record, [], [{"standardised": made[0]}]) == {"x": 6.0, "y": 0.5}
    assert [row["scores"].tolist() for row in task.targets(record, [{}])] == [[1, 2]]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": "a"}, "train.jsonl:33: no 'score' among the fields text; a record needs text and score"),
        ({"text": "a", "score": "high"}, "train.jsonl:33: 'score' is 'high', and must be a finite number"),
        ({"text": "a", "score": float("nan")}, "train.jsonl:33: 'score' is 'nan', and must be a finite number"),
    ],
)
def test_a_target_that_is_no_number_is_refused_with_file_and_line(regress, tmp_path, record, said):
    with pytest.raises(DataError, match=said):
        build(regress([*RECORDS, record]), tmp_path / "run")


def test_a_constant_target_is_refused(regress, tmp_path):
    with pytest.raises(DataError, match=r"'score' is 0\.1 in all 5 records; give records that differ in it"):
        build(regress([{"text": f"{i}", "score": 0.1} for i in range(5)]), tmp_path / "run")


def test_fields_that_do_not_fit_are_refused():
    for fields, said in (
        ({"targets": ("text",)}, "none of the texts"),
        ({"targets": ("x", "x")}, "name each column once"),
        ({"means": (1.0, 2.0)}, "give one for each of the targets"),
        ({"deviations": (0.0,)}, "must be above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            RegressionConfig(**fields)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_tiny_model_learns_32_numbers(regress, tmp_path, kind):
    fields = {"epochs": 40, "optimizer__learning_rate": 0.01, "optimizer__warmup_steps": 5, "evaluation__batches": 8,
              "model__dropout__residual": 0.0, "model__dropout__attention": 0.0}  # fmt: skip
    workdir = lmjax.train(regress(kind=kind, **fields), tmp_path / "run", progress=False)
    last = read_lines(workdir)[-1]
    assert last["eval/dev/regression/loss"] < 0.02
    assert "eval/dev/regression/accuracy" not in last
