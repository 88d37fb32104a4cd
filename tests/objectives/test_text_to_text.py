"""Text to text: records of classification become sources and names of labels, and each record gets a label."""

import json

import numpy as np
import pytest

import lmjax
from lmjax.cli import run as command
from lmjax.data.pipeline import example_stream
from lmjax.errors import DataError, FlagError
from lmjax.inference.predict import predict
from lmjax.inference.score.score import score
from lmjax.inference.score.texts import Item
from lmjax.objectives.records import TokenRecord
from lmjax.runs.build import build
from lmjax.training.metrics import read_lines
from tests.objectives.test_classification import RECORDS, written

FAMILIES = pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])


@pytest.fixture
def labelling(tiny, tmp_path):
    """A function from records, those to evaluate on, and fields to a config."""

    def make(records=RECORDS, held=RECORDS[:8], architecture="decoder", **fields):
        paths = [written(tmp_path / f"{name}.jsonl", r) for name, r in (("train", records), ("dev", held))]
        values = {"data__train": paths[0], "data__eval": f"dev={paths[1]}", "model__architecture": architecture}
        return tiny("text_to_text", **values | {"task__length": 48} | fields)

    return make


def pairs(run):
    """The (source, target) texts of all rows, sorted, and the tokens of each source."""
    found, t = [], run.tokenizer
    for i in range(len(run.train_examples)):
        row = run.train_examples(i, example_stream(0, 0, i))
        paired = run.config.model.family.paired
        side = "decoder_" if paired else ""
        for s in range(1, row[f"{side}segment_ids"].max() + 1):
            at = row[f"{side}segment_ids"] == s
            target = row["targets"][at & (row["weights"] > 0)]
            if paired:
                source = row["encoder_tokens"][row["encoder_segment_ids"] == s]
            else:
                source = row["tokens"][at][1 : at.sum() - len(target) + 1]
            assert source[-1] == target[-1] == t.eos_id
            found.append((t.decode(source[:-1]), t.decode(target)))
    return sorted(found)


@FAMILIES
def test_rows_hold_the_texts_between_words_and_the_name_of_the_label(labelling, tmp_path, architecture):
    records = [
        {"text": "an owl", "label": 10},
        {"text": "an elm", "text2": "so", "label": 2},
        {"text": "", "label": 10},
    ]
    words = {"task__text_to_text__prefix": "say: ", "task__text_to_text__between": " and "}
    run = build(labelling(records, records, architecture, **words), tmp_path / "run")
    assert pairs(run) == [("say: ", "10"), ("say: an elm and so", "2"), ("say: an owl", "10")]
    assert json.loads((tmp_path / "run" / "labels.json").read_text()) == {"labels": ["2", "10"]}


def test_the_longer_text_is_cut_and_the_label_is_not(labelling, tmp_path):
    records = [{"text": "x" * 60, "text2": "y" * 9, "label": "aaa"}, {"text": "x" * 60, "label": "b"}]
    run = build(labelling(records, records), tmp_path / "run")
    # 48 positions: BOS is the first input in place of the last target; EOS of both sides; 4 for the longest label.
    assert pairs(run) == [("x" * 33 + " " + "y" * 9, "aaa"), ("x" * 43, "b")]
    with pytest.raises(FlagError, match="too short for a label of 4 tokens and 61 tokens of prefix"):
        build(labelling(records, records, task__text_to_text__prefix="x" * 60), tmp_path / "other")


def test_labels_that_a_tokenizer_cannot_tell_apart_are_refused(labelling, tmp_path, tokenizer):
    tokenizer.save_in(tmp_path)
    records = [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]
    with pytest.raises(FlagError, match="the labels '1' and '2' have the same ids; choose a tokenizer"):
        build(labelling(records, records, tokenizer__path=tmp_path / "tokenizer.model"), tmp_path / "run")


def test_labels_are_refused_as_in_classification(labelling, tmp_path):
    with pytest.raises(DataError, match=r"dev.jsonl:2: 'label' is 'insect'; the known ones are animal, plant"):
        build(labelling(held=[RECORDS[0], {"text": "a fly", "label": "insect"}]), tmp_path / "run")
    with pytest.raises(DataError, match=r"train.jsonl:2: 'label' is empty"):
        build(labelling([RECORDS[0], {"text": "a fly", "label": ""}]), tmp_path / "run")


@pytest.mark.parametrize("architecture", ["encoder_decoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_a_tiny_model_learns_32_records_and_labels_them(labelling, tmp_path, architecture):
    """To near-zero loss; predictions are right, and their scores those of the labels' texts, whatever the batch."""
    fields = {"epochs": 60, "optimizer__learning_rate": 0.01, "optimizer__warmup_steps": 5, "evaluation__batches": 8,
              "model__dropout__residual": 0.0, "model__dropout__attention": 0.0, "model__embed_dim": 32,
              "task__length": 32, "evaluation__every": 1000, "model__num_layers": 2}  # fmt: skip
    workdir = lmjax.train(
        labelling(held=RECORDS, architecture=architecture, **fields), tmp_path / "run", progress=False
    )
    assert read_lines(workdir)[-1]["eval/dev/text_to_text/loss"] < 0.02
    found = command(["evaluate", f"--workdir={workdir}", f"--data=dev={tmp_path / 'dev.jsonl'}"])["dev"]
    assert (found["accuracy"], found["records"]) == (1, 32)
    predicted = command(["predict", f"--workdir={workdir}", f"--data={tmp_path / 'dev.jsonl'}", "--batch_size=3"])
    assert [each["label"] for each in predicted] == [record["label"] for record in RECORDS]
    loaded = lmjax.load_model(workdir)
    (one,) = predict(loaded, [TokenRecord({"text": [np.array(loaded.tokenizer.encode("the fox 9"), np.int32)],
                                           "text2": [np.zeros(0, np.int32)]}, {})])  # fmt: skip
    logs = [s.log_likelihood for s in score(loaded, [Item("the fox 9", label) for label in ("animal", "plant")])]
    expected = np.exp(logs) / np.sum(np.exp(logs))
    np.testing.assert_allclose(list(one["scores"].values()), expected, rtol=1e-3)


def test_a_tokenizer_of_a_classifier_on_the_same_data_is_not_taken(labelling, tiny, tmp_path):
    """It was trained on the texts alone, so it may lack the characters of the labels."""
    records = [{"text": "an owl", "label": 10}, {"text": "an elm", "label": 2}]
    config = labelling(records, records, batch_size=8)
    data = {"data__train": config.data.train, "data__eval": f"dev={config.data.eval[0].path}"}
    plain = build(tiny("classification", model__architecture="encoder", **data), tmp_path / "plain")
    own = build(config, tmp_path / "own").tokenizer
    assert plain.tokenizer.decode(plain.tokenizer.encode("10")) != "10"
    assert own.decode(own.encode("10")) == "10"
