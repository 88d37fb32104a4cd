"""Classification: rows of one or two texts with their label, what is refused, and models that learn 32 examples."""

import json

import numpy as np
import pytest

import lmjax
from lmjax.data.pipeline import example_stream
from lmjax.errors import DataError, FlagError
from lmjax.objectives.classification import LABEL, ClassificationConfig
from lmjax.objectives.text_task import SECOND, TEXT
from lmjax.runs.build import build
from lmjax.training.metrics import read_lines

ANIMALS, PLANTS = ("fox", "cow", "owl", "eel"), ("oak", "fir", "elm", "ivy")
RECORDS = [{TEXT: f"the {x} {i}", LABEL: kind} for i in range(4) for kind, xs in
           (("animal", ANIMALS), ("plant", PLANTS)) for x in xs]  # fmt: skip


def written(path, records=RECORDS):
    if path.suffix == ".tsv":
        lines = ["\t".join(records[0]), *("\t".join(map(str, r.values())) for r in records)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture
def classify(tiny, tmp_path):
    """A function from records, those to evaluate on, and fields to a config."""

    def make(records=RECORDS, held=RECORDS[:8], kind="jsonl", architecture="encoder", **fields):
        paths = [written(tmp_path / f"{name}.{kind}", r) for name, r in (("train", records), ("dev", held))]
        values = {"data__train": paths[0], "data__eval": f"dev={paths[1]}", "model__architecture": architecture}
        return tiny("classification", **values | fields)

    return make


def rows(run):
    return [run.train_examples(i, example_stream(0, 0, i)) for i in range(len(run.train_examples))]


@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_rows_hold_one_or_two_texts_and_the_label(classify, tmp_path, architecture):
    records = [{TEXT: "an owl", LABEL: 10}, {TEXT: "an elm", SECOND: "so", LABEL: 2}, {TEXT: "", LABEL: 10}]
    run = build(classify(records, records, architecture=architecture, batch_size=8), tmp_path / "run")
    t, (single, pair, empty) = run.tokenizer, rows(run)
    assert json.loads((tmp_path / "run" / "labels.json").read_text()) == {"labels": ["2", "10"]}
    assert [row["labels"] for row in (single, pair, empty)] == [1, 0, 1]
    a, b, c = t.encode("an owl"), t.encode("an elm"), t.encode("so")
    if architecture == "encoder":
        expected = [[t.cls_id, *a, t.sep_id], [t.cls_id, *b, t.sep_id, *c, t.sep_id], [t.cls_id, t.sep_id]]
        types = [0] * (len(b) + 2) + [1] * (len(c) + 1)
    else:
        expected = [[t.bos_id, *a], [t.bos_id, *b, t.eos_id, *c], [t.bos_id]]
        types = [0] * (len(b) + 2) + [1] * len(c)
    for row, ids in zip((single, pair, empty), expected, strict=True):
        assert row["tokens"][row["segment_ids"] > 0].tolist() == ids
        assert row["tokens"][: len(ids)].tolist() == ids
    assert pair["type_ids"][: len(types)].tolist() == types
    assert not single["type_ids"].any()
    assert run.config.model.head.labels == 2


def test_the_longer_text_is_cut(classify, tmp_path):
    records = [{TEXT: "x" * 60, SECOND: "y" * 9, LABEL: "a"}, {TEXT: "x" * 60, SECOND: "y" * 60, LABEL: "b"}]
    run = build(classify(records, records), tmp_path / "run")
    for row, counts in zip(rows(run), ((20, 9), (15, 14)), strict=True):
        assert row["segment_ids"].all()
        x, y = (run.tokenizer.encode(letter)[-1] for letter in "xy")
        assert ((row["tokens"] == x).sum(), (row["tokens"] == y).sum()) == counts


@pytest.mark.parametrize(
    ("kind", "held", "said"),
    [
        (
            "jsonl",
            [*RECORDS[:2], {TEXT: "a fly", LABEL: "insect"}],
            "dev.jsonl:3: 'label' is 'insect'; the known ones are a",
        ),
        (
            "tsv",
            [*RECORDS[:2], {TEXT: "a fly", LABEL: ""}],
            "dev.tsv:4: 'label' is empty; the known ones are",
        ),
        ("jsonl", [{TEXT: "a fly"}], "dev.jsonl:1: no 'label' among the fields text; a record needs text and label"),
        ("jsonl", [{TEXT: "a fly", LABEL: 0.5}], "dev.jsonl:1: 'label' is '0.5', and must be a string or a whole"),
    ],
)
def test_a_label_that_cannot_be_is_refused_with_file_and_line(classify, tmp_path, kind, held, said):
    with pytest.raises(DataError, match=said):
        build(classify(held=held, kind=kind), tmp_path / "run")


def test_training_data_are_refused_with_file_and_line(classify, tmp_path):
    with pytest.raises(DataError, match=r"train.jsonl:2: 'label' is empty; give each record a label"):
        build(classify([RECORDS[0], {TEXT: "a fly", LABEL: " "}]), tmp_path / "run")
    with pytest.raises(DataError, match="only 'label' of all records is 'animal'; give records of two or more"):
        build(classify(RECORDS[:2]), tmp_path / "run")
    named = classify(held=RECORDS[:2], task__classification__labels="plant,animal")
    assert build(named, tmp_path / "named").config.task.classification.labels == ("plant", "animal")
    named = classify([*RECORDS, {TEXT: "a fly", LABEL: "insect"}], task__classification__labels="plant,animal")
    with pytest.raises(DataError, match=r"train.jsonl:33: 'label' is 'insect'; the known ones are plant, animal"):
        build(named, tmp_path / "run")
    with pytest.raises(ValueError, match="give two labels or more, each once"):
        ClassificationConfig(labels=("a", "a"))


@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_a_tiny_model_learns_32_examples_whatever_the_padding(classify, tmp_path, architecture, evaluated_in_rows):
    """To near-zero loss; then rows twice as long give the same loss."""
    fields = {"epochs": 30, "optimizer__learning_rate": 0.01, "optimizer__warmup_steps": 5, "evaluation__batches": 8,
              "model__dropout__residual": 0.0, "model__dropout__attention": 0.0}  # fmt: skip
    config = classify(held=RECORDS, architecture=architecture, **fields)
    workdir = lmjax.train(config, tmp_path / "run", progress=False)
    last = read_lines(workdir)[-1]
    assert last["step"] == 30 * 32 / 8
    assert last["eval/dev/classification/loss"] < 0.02
    assert last["eval/dev/classification/accuracy"] == last["eval/dev/classification/f1 macro"] == 1
    again = evaluated_in_rows(workdir, config, 64)
    np.testing.assert_allclose(again["eval/dev/classification/loss"], last["eval/dev/classification/loss"], rtol=1e-4)


def test_early_stopping_and_the_best_checkpoint_follow_a_metric_of_the_task(classify, tmp_path):
    """The rate is so low that no prediction changes: the first evaluation stays the best, and the run stops early."""
    fields = {"steps": 20, "optimizer__learning_rate": 1e-7, "evaluation__every": 2, "evaluation__patience": 3,
              "checkpoint__every": 2, "evaluation__metric": "classification/f1 macro"}  # fmt: skip
    workdir = lmjax.train(classify(**fields), tmp_path / "run", progress=False)
    lines = [line for line in read_lines(workdir) if "eval/dev/loss" in line]
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    assert len({line["eval/dev/classification/f1 macro"] for line in lines}) == 1
    with pytest.raises(
        FlagError, match="the evaluation has no 'dev/classification/f1'; did you mean dev/classification/"
    ):
        lmjax.train(classify(**fields | {"evaluation__metric": "classification/f1"}), tmp_path / "x", progress=False)
