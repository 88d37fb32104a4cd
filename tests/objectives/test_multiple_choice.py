"""Multiple choice: what rows hold, the files that are read, what is refused, and models that learn 32 records."""

import json

import numpy as np
import pytest

import lmjax
from lmjax.data.choices import CHOICES, CONTEXT, LABEL, QUESTION, Choices
from lmjax.data.fields import Fields
from lmjax.data.pipeline import example_stream
from lmjax.errors import DataError, FlagError
from lmjax.evaluation.predicted import as_documents, encoded, predict_documents, read_documents
from lmjax.inference.predict import predict
from lmjax.objectives.multiple_choice import MultipleChoice, MultipleChoiceConfig
from lmjax.objectives.records import TokenRecord
from lmjax.runs.build import build
from lmjax.runs.trained import load_model
from lmjax.training.metrics import read_lines
from tests.thinned import thinned

# Which animal runs? The right choice is an animal, and the others are plants; every second record has three choices.
ANIMALS, PLANTS = ("fox", "cow", "owl", "eel"), ("oak", "fir", "elm", "ivy")
RECORDS = [
    {CONTEXT: f"{i}", CHOICES: [animal, PLANTS[k], PLANTS[(i + k) % 4]][: 2 + i % 2], LABEL: 0}
    for i in range(1, 9)
    for k, animal in enumerate(ANIMALS)
]
# The right choice is at any place.
RECORDS = [
    r | {CHOICES: r[CHOICES][-(i % 2) :] + r[CHOICES][: -(i % 2)], LABEL: 1} if i % 2 else r
    for i, r in enumerate(RECORDS)
]


@pytest.fixture
def choosing(tiny, tmp_path):
    """A function from records and fields to a config."""

    def make(records=RECORDS, held=None, architecture="encoder", **fields):
        paths = []
        for name, of in (("train", records), ("dev", records[:8] if held is None else held)):
            paths.append(tmp_path / f"{name}.jsonl")
            paths[-1].write_text("".join(json.dumps(record) + "\n" for record in of))
        values = {"data__train": paths[0], "data__eval": f"dev={paths[1]}", "model__architecture": architecture}
        if architecture == "encoder_decoder":
            values["model__embedding__types"] = 0
        return tiny("multiple_choice", **values | fields)

    return make


def around(t, architecture, context, second):
    a, b = t.encode(context), t.encode(second)
    if architecture == "encoder":
        return [t.cls_id, *a, t.sep_id, *b, t.sep_id]
    return [t.bos_id, *a, t.eos_id, *b] if architecture == "decoder" else [*a, t.eos_id, *b, t.eos_id]


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_choices_are_segments_of_one_row(choosing, tmp_path, architecture):
    records = [{CONTEXT: "an owl", QUESTION: "why", CHOICES: ["so", "it", "a"], LABEL: 2}, *RECORDS[:3],
               {CONTEXT: "", CHOICES: ["", "x"], LABEL: 0}]  # fmt: skip
    run = build(choosing(records, architecture=architecture, task__length=64), tmp_path / "run")
    t, row = run.tokenizer, run.train_examples(0, example_stream(0, 0, 0))
    prefix = "encoder_" if architecture == "encoder_decoder" else ""
    for number, choice in enumerate(("why so", "why it", "why a"), start=1):
        ids = around(t, architecture, "an owl", choice)
        there = row[f"{prefix}segment_ids"] == number
        assert row[f"{prefix}tokens"][there].tolist() == ids
        assert row[f"{prefix}positions"][there].tolist() == [*range(len(ids))]
        if architecture == "encoder":
            first = len(t.encode("an owl")) + 2
            assert row["type_ids"][there].tolist() == [0] * first + [1] * (len(ids) - first)
    assert row["text_ids"].tolist() == [1, 2, 3, 0, 0, 0, 0, 0]
    assert row["labels"] == 2
    if prefix:
        assert row["decoder_segment_ids"].tolist() == [1, 2, 3] + [0] * (len(row["decoder_segment_ids"]) - 3)
    assert len(run.train_examples) == len(records), "empty texts are kept"


def test_the_longest_choices_are_cut_and_each_keeps_its_end(choosing, tmp_path):
    records = [{CONTEXT: "x" * 90, CHOICES: ["y", "z" * 90], LABEL: 0}] * 2
    run = build(choosing(records), tmp_path / "run")
    row = run.train_examples(0, example_stream(0, 0, 0))
    assert [(row["segment_ids"] == i).sum() for i in (1, 2)] == [16, 16]
    t = run.tokenizer
    for i, letter in ((1, "y"), (2, "z")):
        tokens = row["tokens"][row["segment_ids"] == i].tolist()
        assert (tokens[0], tokens[-1]) == (t.cls_id, t.sep_id)
        assert t.encode(letter)[-1] in tokens


def arranged(**fields):
    form = Choices(8)
    found = form.arranged("f:1", Fields(list(fields.items())))
    return {name: found.get(name, "") for name in (CONTEXT, QUESTION, CHOICES, LABEL)}.values()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"context": "c", "question": "q", "choices": ["a", "b"], "label": "b"}, ("c", "q", ["a", "b"], 1)),
        ({"question": "q", "choices": ["a", "b"], "label": 0}, ("q", "", ["a", "b"], 0)),
        ({"context": " ", "question": "q", "choices": '["a", "b"]', "answer": "B"}, ("q", "", ["a", "b"], 1)),
        # SWAG, COPA, RACE, CommonsenseQA, and a question of four choices in a table of five.
        ({"sent1": "c", "sent2": "He", "ending0": "a", "ending1": "b", "label": "1"}, ("c", "He", ["a", "b"], 1)),
        ({"premise": "c", "question": "cause", "choice1": "a", "choice2": "b", "label": 1},
         ("c", "cause", ["a", "b"], 1)),
        ({"article": "c", "question": "q", "options": ["a", "b"], "answer": "A"}, ("c", "q", ["a", "b"], 0)),
        ({"question": "q", "choices": {"label": ["1", "2"], "text": ["a", "b"]}, "answerKey": "1"},
         ("q", "", ["a", "b"], 0)),
        ({"question": "q", "optionA": "a", "optionB": "b", "optionC": " ", "answer": "b"}, ("q", "", ["a", "b"], 1)),
        # A number of JSON is never a text.
        ({"context": "c", "question": None, "choices": ["1", "0"], "label": 1}, ("c", "", ["1", "0"], 1)),
        ({"context": "c", "choices": ["", "x"], "label": 0}, ("c", "", ["", "x"], 0)),
    ],
)  # fmt: skip
def test_records_of_many_shapes_are_read(fields, expected):
    assert tuple(arranged(**fields)) == expected


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({CONTEXT: "c", CHOICES: ["a", "b"]}, "dev.jsonl:1: no 'label' among the fields context, choices"),
        ({CONTEXT: "c", LABEL: 0}, "dev.jsonl:1: no 'choices' among the fields context, label"),
        ({CHOICES: ["a", "b"], LABEL: 0}, "dev.jsonl:1: has neither context nor question"),
        ({CONTEXT: "c", CHOICES: ["a", "b"], LABEL: 2}, "dev.jsonl:1: 'label' is '2', and there are the choices 0 to"),
        ({CONTEXT: "c", CHOICES: ["a", "b"], LABEL: -1}, "dev.jsonl:1: 'label' is '-1', and there are"),
        ({CONTEXT: "c", CHOICES: ["a", "b"], LABEL: "c"}, "dev.jsonl:1: 'label' is 'c', and there are the choices"),
        ({CONTEXT: "c", CHOICES: ["a", "b"], LABEL: True}, "dev.jsonl:1: 'label' is 'True', and there are"),
        ({CONTEXT: "c", CHOICES: ["a", "a"], LABEL: "a"}, "1: 'label' is 'a', which can be the choices 0 and 1"),
        ({CONTEXT: "c", CHOICES: ["1", "2"], LABEL: "1"}, "'label' is '1', which can be the choices 0 and 1"),
        ({CONTEXT: "c", CHOICES: ["a"], LABEL: 0}, "dev.jsonl:1: 1 choice.s.; give at least two"),
        ({CONTEXT: "c", CHOICES: ["a"] * 9, LABEL: 0}, "9 choices, and a record may have 8; .* set most_choices=9"),
        ({CONTEXT: "c", CHOICES: "a", LABEL: 0}, "dev.jsonl:1: 'choices' is 'a', which is not a list in JSON"),
        ({CONTEXT: "c", CHOICES: 7, LABEL: 0}, "dev.jsonl:1: 'choices' is '7', not a list"),
        ({CONTEXT: "c", CHOICES: ["a", 1.5], LABEL: 0}, "dev.jsonl:1: 'choices' is '1.5', and must be a string"),
        ({CONTEXT: "c", CHOICES: {"text": ["a"]}, LABEL: 0}, "'choices' has not one 'label' for each 'text'"),
        ({CONTEXT: "c", "article": "d", CHOICES: ["a", "b"], LABEL: 0}, "'context' and 'article' are both a context"),
        ({CONTEXT: "c", "choice1": "a", "choice3": "b", LABEL: 0}, "columns of choices are choice1, choice3; one is"),
    ],
)  # fmt: skip
def test_records_that_cannot_be_are_refused_with_file_and_line(choosing, tmp_path, record, said):
    with pytest.raises(DataError, match=said):
        build(choosing(held=[record]), tmp_path / "run")


def test_tables_have_a_column_for_each_choice(tmp_path, tokenizer):
    path = tmp_path / "swag.csv"
    path.write_text("id,sent1,sent2,ending0,ending1,ending2,label\n1,A man sits.,He,runs.,eats.,,1\n2,B,,x,y,z,2\n")
    task = MultipleChoice(MultipleChoiceConfig(), tokenizer, "encoder", 64, 64, 0)
    assert [(d.segments, d.values) for d in read_documents(str(path), task)] == [
        (("A man sits.",), ("He", ("runs.", "eats."), 1)),
        (("B",), ("", ("x", "y", "z"), 2)),
    ]
    assert [d.values for d in read_documents(str(path), task, gold=False)] == [
        ("He", ("runs.", "eats.")), ("", ("x", "y", "z"))]  # fmt: skip
    path.write_text("sent1,ending0,ending1,label\nA,x,y,3\n")
    with pytest.raises(DataError, match=r"swag.csv:2: 'label' is '3', and there are the choices 0 to 1"):
        read_documents(str(path), task)
    path.write_text("sent1,ending0,ending1\nA,x,y\n")
    with pytest.raises(DataError, match=r"swag.csv:1: no 'label' among the fields"):
        read_documents(str(path), task)
    assert len(read_documents(str(path), task, gold=False)) == 1
    path.write_text("sent1,gold\nA,x\n")
    with pytest.raises(DataError, match=r"swag.csv:1: no 'choices' among the fields sent1, gold, context"):
        read_documents(str(path), task)


def test_a_row_without_room_for_its_choices_is_refused(choosing, tmp_path):
    records = [{CONTEXT: "c", CHOICES: list("abcde"), LABEL: 0}] * 2
    with pytest.raises(FlagError, match=r"length=32: 5 choices share a row, and each needs 8 tokens .* at least 40"):
        build(choosing(records), tmp_path / "run")


@pytest.mark.parametrize("architecture", thinned(["encoder", "decoder", "encoder_decoder"], 3))
def test_a_tiny_model_learns_32_records_whatever_the_padding(choosing, tmp_path, architecture):
    """To near-zero loss; then rows twice as long give the same loss, and single records the same predictions."""
    fields = {"epochs": 20, "optimizer__learning_rate": 0.02, "optimizer__warmup_steps": 5, "evaluation__batches": 8,
              "model__dropout__residual": 0.0, "model__dropout__attention": 0.0, "model__num_layers": 2}  # fmt: skip
    config = choosing(held=RECORDS, architecture=architecture, **fields)
    workdir = lmjax.train(config, tmp_path / "run", progress=False)
    last = read_lines(workdir)[-1]
    assert last["eval/dev/multiple_choice/loss"] < 0.02
    assert last["eval/dev/multiple_choice/accuracy"] == 1
    longer = config.with_fields({"init_from": str(workdir), "steps": 1, "epochs": None,
                                 "task": config.task.with_fields({"length": 64})})  # fmt: skip
    again = read_lines(lmjax.train(longer, tmp_path / "longer", progress=False))[0]
    expected = last["eval/dev/multiple_choice/loss"]
    np.testing.assert_allclose(again["eval/dev/multiple_choice/loss"], expected, rtol=1e-4)

    loaded = load_model(workdir)
    metrics = lmjax.evaluate(loaded, RECORDS, task="own")
    assert metrics["accuracy"] == metrics["accuracy"].high == 1
    assert metrics["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    found = predict_documents(loaded, read_documents(str(tmp_path / "dev.jsonl"), loaded.task, gold=False))
    assert [each["label"] for each in found] == [r[LABEL] for r in RECORDS]
    assert all(each["choice"] == r[CHOICES][r[LABEL]] for each, r in zip(found, RECORDS, strict=True))
    assert all(len(each["scores"]) == len(r[CHOICES]) for each, r in zip(found, RECORDS, strict=True))
    assert all(sum(each["scores"]) == pytest.approx(1) for each in found)

    # A choice's score does not depend on the other choices, their order or the batch.
    given = [{CONTEXT: "1", CHOICES: list(of)} for of in (("cow", "fir"), ("fir", "it", "cow"), ("", "cow", "fir"))]
    records = encoded(loaded, as_documents(given, loaded.task, gold=False), gold=False)
    odds = []
    for size in (1, 7):
        for one, record in zip(predict(loaded, records, size), given, strict=True):
            scores = dict(zip(record[CHOICES], one["scores"], strict=True))
            odds.append(np.log(scores["cow"] / scores["fir"]))
    np.testing.assert_allclose(odds, odds[0], rtol=1e-3, atol=1e-4)


def test_an_ensemble_chooses_by_the_mean(tokenizer):
    task = MultipleChoice(MultipleChoiceConfig(), tokenizer, "encoder", 64, 64, 0)
    record = TokenRecord({}, {CHOICES: ("a", "b", "c"), LABEL: 1})
    given = [task.predict(record, [], [{"log_probs": np.log([*p, 1e-9])}]) for p in ((0.5, 0.4, 0.1), (0.1, 0.4, 0.5))]
    assert [each["label"] for each in given] == [0, 2]
    found = task.vote(given)
    assert (found["label"], found["choice"]) == (1, "b")
    np.testing.assert_allclose(found["scores"], [0.3, 0.4, 0.3])
    assert task.right(task.truth(record), found)
    assert not task.right(task.truth(record), given[0])
    assert task.shown(found) == "1\tb\t0.4000"
