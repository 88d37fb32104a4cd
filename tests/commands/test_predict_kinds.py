"""Classifiers of several labels and regression: from training to metrics, predictions, and out to Hugging Face."""

import json

import numpy as np
import pytest

from lmjax.cli import run
from lmjax.errors import FlagError
from lmjax.evaluation.predicted import as_documents, encoded
from lmjax.inference.predict import predict
from lmjax.runs.pretrained import open_pretrained
from lmjax.runs.trained import load_model

pytestmark = pytest.mark.long

SMALL = ("--config.model.embed_dim=16", "--config.model.num_heads=2", "--config.model.mlp_dim=32",
         "--config.model.max_length=32", "--config.task.length=32", "--config.tokenizer.kind=char",
         "--config.tokenizer.byte_fallback=false", "--config.logging.tensorboard=false", "--batch_size=8",
         "--steps=6", "--lr=0.003", "--noprogress")  # fmt: skip
QUICK = SMALL[4:5] + SMALL[7:]
TEXTS = [f"{a} {x}" for a in ("the", "an old", "never a") for x in ("fox", "cow", "oak", "fir")]
PRESETS = {"encoder": "bert_tiny", "decoder": "nano_decoder"}


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr("lmjax.evaluation.predicted.RESAMPLES", 30)


def scored(path, texts=TEXTS):
    """A table without a header: two texts and a number."""
    path.write_text("".join(f"{text},so,{100 + len(text)}\n" for text in texts))
    return path


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def numbers(request, tmp_path_factory):
    """The folder of a run that predicts numbers around 108; of a decoder, around 0 by its means."""
    folder = tmp_path_factory.mktemp(request.param)
    means = ("--config.task.regression.means=0",) if request.param == "decoder" else ()
    run(["train", "--objective=regression", f"--preset={PRESETS[request.param]}", f"--workdir={folder / 'run'}",
         f"--data={scored(folder / 'a.csv')}", f"--eval_data=dev={scored(folder / 'dev.csv', TEXTS[::2])}",
         "--config.data.column_names=text,text2,score", *means, *SMALL])  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tags(tmp_path_factory):
    """The folder of a run that predicts any of three labels."""
    folder = tmp_path_factory.mktemp("labels")
    for name, texts in (("a", TEXTS), ("dev", TEXTS[::2])):
        lines = [{"text": x, "labels": [w for w in ("old", "fox", "oak") if w in x]} for x in texts]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(["train", "--objective=classification", "--config.task.classification.kind=multiple", "--preset=bert_tiny",
         f"--workdir={folder / 'run'}", f"--data={folder / 'a.jsonl'}", f"--eval_data=dev={folder / 'dev.jsonl'}",
         *SMALL])  # fmt: skip
    return folder


def found(loaded, records, batch_size=32):
    documents = as_documents(records, loaded.task, gold=False)
    return predict(loaded, encoded(loaded, documents, gold=False), batch_size)


PAIRS = [{"text": "the fox", "text2": "an oak"}, {"text": "", "text2": "x"}, {"text": "a"}]


def test_numbers_are_measured_in_their_own_units(numbers, capsys, tmp_path):
    argv = [f"--workdir={numbers / 'run'}", f"--data={numbers / 'dev.csv'}", "--column_names=text,text2,score"]
    metrics = run(["evaluate", *argv])[str(numbers / "dev.csv")]
    output = tmp_path / "predictions.jsonl"
    run(["predict", *argv, f"--output={output}"])
    records = [json.loads(line) for line in output.read_text().splitlines()]
    gold, predicted = np.array([(each["gold"], each["score"]) for each in records]).T
    assert gold.tolist() == [100 + len(text) for text in TEXTS[::2]]
    assert metrics["mse"] == pytest.approx(np.mean((gold - predicted) ** 2))
    assert metrics["pearson"] == pytest.approx(np.corrcoef(gold, predicted)[0, 1], abs=1e-6)
    assert metrics["spearman"].low <= metrics["spearman"] <= metrics["spearman"].high
    loaded = load_model(numbers / "run")
    one, *others = (found(loaded, PAIRS, size) for size in (1, 7, 64))
    for other in others:
        np.testing.assert_allclose([x["score"] for x in other], [x["score"] for x in one], rtol=1e-6)


def test_numbers_go_out_and_come_in_in_their_own_units(numbers, tmp_path):
    out = tmp_path / "hf"
    run(["convert", f"--workdir={numbers / 'run'}", f"--to={out}"])
    values = json.loads((out / "config.json").read_text())
    assert (values["problem_type"], values["id2label"]) == ("regression", {"0": "score"})
    expected = [x["score"] for x in found(load_model(numbers / "run"), PAIRS)]
    run(["convert", f"--from={out}", f"--workdir={tmp_path / 'in'}"])
    for place in (out, tmp_path / "in"):
        np.testing.assert_allclose([x["score"] for x in found(load_model(place), PAIRS)], expected, rtol=1e-5)
    run(["train", f"--init_from={out}", "--objective=regression", f"--data={numbers / 'a.csv'}",
         f"--eval_data=dev={numbers / 'dev.csv'}", "--config.data.column_names=text,text2,score",
         f"--workdir={tmp_path / 'on'}", *QUICK])  # fmt: skip
    settings = open_pretrained(tmp_path / "on").tasks["regression"]
    assert (settings.means, settings.deviations) == ((0,), (1,)), "the loaded head predicts in own units"


def test_means_without_a_bias_are_not_exported(tmp_path):
    data = scored(tmp_path / "a.csv")
    run(["train", "--objective=regression", "--preset=nano_decoder", f"--workdir={tmp_path / 'run'}", f"--data={data}",
         f"--eval_data=dev={scored(tmp_path / 'dev.csv')}", "--config.data.column_names=text,text2,score",
         *SMALL])  # fmt: skip
    with pytest.raises(FlagError, match=r"no bias, .* train with --config.task.regression.means=0"):
        run(["convert", f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'hf'}"])


@pytest.mark.filterwarnings("ignore")
def test_transformers_gives_the_same_numbers(numbers, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    run(["convert", f"--workdir={numbers / 'run'}", f"--to={tmp_path / 'hf'}"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    expected = [x["score"] for x in found(load_model(numbers / "run"), PAIRS)]
    for record, number in zip(PAIRS, expected, strict=True):
        with torch.no_grad():
            given = tokenizer(*record.values(), return_tensors="pt")
            np.testing.assert_allclose(model(**given).logits[0, 0].item(), number, rtol=1e-5)


def test_several_labels_are_measured_and_exported(tags, tmp_path, capsys):
    metrics = run(["evaluate", f"--workdir={tags / 'run'}", f"--data=dev={tags / 'dev.jsonl'}"])["dev"]
    assert {"subset_accuracy", "f1 micro", "f1 oak"} <= metrics.keys()
    records = run(["predict", f"--workdir={tags / 'run'}", f"--data={tags / 'dev.jsonl'}"])
    loaded = load_model(tags / "run")
    for record in records:
        assert record["labels"] == [x for x, score in record["scores"].items() if score >= 0.5]
    assert [record.get("gold", ()) for record in records[:2]] == [("fox",), ("oak",)]
    out = tmp_path / "hf"
    run(["convert", f"--workdir={tags / 'run'}", f"--to={out}"])
    values = json.loads((out / "config.json").read_text())
    assert values["problem_type"] == "multi_label_classification"
    assert values["id2label"] == {"0": "fox", "1": "oak", "2": "old"}
    scores = [[list(x["scores"].values()) for x in found(each, PAIRS)] for each in (loaded, load_model(out))]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)
    run(["train", f"--init_from={out}", "--objective=classification", f"--data={tags / 'a.jsonl'}",
         f"--eval_data=dev={tags / 'dev.jsonl'}", f"--workdir={tmp_path / 'on'}", *QUICK])  # fmt: skip
    assert open_pretrained(tmp_path / "on").tasks["classification"].kind == "multiple"
