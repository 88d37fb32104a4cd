"""A file of a teacher's predictions teaches as the teacher itself does, and one that does not fit is refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import lmjax
from lmjax.cli import run
from lmjax.config import replace
from lmjax.data.taught import Taught
from lmjax.errors import DataError, FlagError
from lmjax.runs.build import build
from tests.workdirs import bits, resumed_from


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """The folder of a trained decoder, the config of a student, and the flags that describe the student's rows."""
    folder = tmp_path_factory.mktemp("runs")
    fields = {"evaluation__batches": 1, "optimizer__warmup_steps": 0, "optimizer__learning_rate": 0.01,
              "model__dropout__residual": 0, "model__dropout__attention": 0}  # fmt: skip
    lmjax.train(tiny("next_token", **fields, steps=6, model__num_layers=2), folder / "teacher", progress=False)
    student = tiny("next_token", **fields, steps=4, checkpoint__every=2, model__num_layers=1,
                   tokenizer__path=folder / "teacher", teacher__place=folder / "all.safetensors")  # fmt: skip
    flags = [f"--model={folder / 'teacher'}", f"--data={student.data.train}", "--length=32", "--batch_size=8",
             "--config.data.held_out=0.2"]  # fmt: skip
    rows = build(replace(student, {"teacher.place": ""}), folder / "x").model.config.vocab_size
    run(["teach", *flags, f"--to={folder / 'all.safetensors'}", f"--top_k={rows - 1}"])
    return folder, student, flags


def drawn(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["train/next_token_teacher/loss"] for line in lines if "train/loss" in line]


def test_the_file_teaches_as_the_teacher_does(runs, tmp_path):
    folder, config, _ = runs
    by_file = lmjax.train(config, tmp_path / "file", progress=False)
    itself = replace(config, {"teacher.place": str(folder / "teacher")})
    by_teacher = lmjax.train(itself, tmp_path / "teacher", progress=False)
    np.testing.assert_allclose(drawn(by_file), drawn(by_teacher), rtol=5e-3)
    assert drawn(by_file)[0] > 0.01
    again = lmjax.train(config, resumed_from(by_file, 2, tmp_path / "again"), progress=False)
    assert bits(again, 4) == bits(by_file, 4)


def test_the_file_is_safetensors_and_names_who_wrote_it(runs):
    folder, _, _ = runs
    arrays, taught = load_file(folder / "all.safetensors"), Taught(str(folder / "all.safetensors"))
    assert arrays["ids"].shape == arrays["log_probs"].shape
    total = np.exp(arrays["log_probs"].astype(np.float64)).sum(-1)
    assert (total <= 1.01).all()
    assert total.mean() > 0.9
    assert taught.metadata["place"] == str(folder / "teacher")
    assert taught.metadata["temperature"] == 2.0


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"teacher.temperature": 1.0}, FlagError, r"was written with temperature 2.0, and this run has 1.0"),
        ({"task.length": 16}, DataError, r"all\.safetensors: lacks a row of the training data"),
        ({"seed": 5}, DataError, r"lacks a row"),
        ({"teacher.place": "nowhere.safetensors"}, DataError, r"nowhere\.safetensors: is no file of lmjax teach"),
    ],
)
def test_a_file_of_other_rows_is_refused(runs, tmp_path, fields, error, said):
    _, config, _ = runs
    with pytest.raises(error, match=said):
        lmjax.train(replace(config, fields), tmp_path / "run", progress=False)


def test_a_damaged_file_is_refused(runs, tmp_path):
    folder, _, _ = runs
    content = (folder / "all.safetensors").read_bytes()
    for name, damaged in (("cut", content[: len(content) // 2]), ("empty", b""), ("text", b"no" * 50)):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"is no file of lmjax teach .*; write it again"):
            Taught(str(path))


def test_what_cannot_be_written_is_refused(runs, tmp_path, tiny):
    folder, _, flags = runs
    for more, said in (
        ([f"--to={tmp_path / 'x.npz'}"], r"is a file that ends in \.safetensors"),
        ([f"--to={folder / 'all.safetensors'}"], "never overwritten"),
        ([f"--to={tmp_path / 'x.safetensors'}", "--top_k=100000"], "--top_k=100000: give a number from 1 to"),
        ([f"--to={tmp_path / 'x.safetensors'}", "--objective=prefix_lm"], "drawn anew in each epoch"),
        ([], "needs --model=TEACHER and --to"),
    ):
        with pytest.raises(FlagError, match=said):
            run(["teach", *flags, *more])
    assert not list(tmp_path.iterdir())
