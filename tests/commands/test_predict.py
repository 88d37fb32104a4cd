"""From pretrained parameters to a classifier, its predictions, its metrics, and out to Hugging Face and in again."""

import json
import shutil

import numpy as np
import pytest

from lmjax.cli import run
from lmjax.errors import DataError, FlagError
from lmjax.evaluation.classes import single_label
from lmjax.evaluation.predicted import as_documents, encoded, evaluate_models, read_documents
from lmjax.evaluation.tasks import evaluate
from lmjax.inference.predict import predict
from lmjax.runs.pretrained import open_pretrained
from lmjax.runs.trained import load_model
from tests.thinned import thinned

pytestmark = pytest.mark.long

WORDS = {"animal": ("fox", "cow", "owl", "eel"), "plant": ("oak", "fir", "elm", "ivy"), "7": ("one", "two", "six")}
ROWS = [(f"{a} {x}", kind) for a in ("the", "an old", "never a") for kind, xs in WORDS.items() for x in xs]
LABELS = ("7", "animal", "plant")
SMALL = ("--config.model.num_layers=1", "--config.model.embed_dim=16", "--config.model.num_heads=2",
         "--config.model.mlp_dim=32", "--config.model.max_length=32", "--config.task.length=32",
         "--config.tokenizer.kind=char", "--config.tokenizer.byte_fallback=false",
         "--config.logging.tensorboard=false", "--batch_size=8")  # fmt: skip
QUICK = ("--config.logging.tensorboard=false", "--batch_size=8", "--config.task.length=32", "--lr=0.003")


def written(path, rows=ROWS):
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return path


@pytest.fixture(scope="module", params=thinned(["encoder", "decoder"], 2))
def place(request, tmp_path_factory, corpus):
    """The workdir of a classifier that began from a pretrained run, and what the run printed."""
    folder = tmp_path_factory.mktemp(request.param)
    objective = {"encoder": "mlm", "decoder": "next_token"}[request.param]
    preset = "--preset=" + {"encoder": "bert_tiny", "decoder": "nano_decoder"}[request.param]
    held = "--config.data.held_out=0.2"
    run(["train", f"--objective={objective}", f"--data={corpus}", f"--workdir={folder / 'pre'}", "--steps=2", held,
         preset, "--noprogress", *SMALL])  # fmt: skip
    dev = written(folder / "dev.tsv", [*ROWS[::3], ("", "7")])
    run(["train", f"--init_from={folder / 'pre'}", "--objective=classification", f"--data={written(folder / 'a.tsv')}",
         f"--eval_data=dev={dev}", f"--workdir={folder / 'run'}", "--epochs=10", *QUICK])  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr("lmjax.evaluation.predicted.RESAMPLES", 30)


def labels_of(place):
    return open_pretrained(place).tasks["classification"].labels


def probabilities(loaded, texts, batch_size=32):
    """Returns `[texts, labels]`, the probabilities in the order of the labels."""
    records = encoded(loaded, as_documents([{"text": text} for text in texts], loaded.task, gold=False), gold=False)
    found = predict(loaded, records, batch_size)
    return np.array([[each["scores"][label] for label in labels_of_loaded(loaded)] for each in found])


def labels_of_loaded(loaded):
    return loaded.tasks["classification"].labels


def test_a_run_says_what_is_loaded_and_what_is_new(place, capsys, tmp_path):
    run(["train", f"--init_from={place / 'pre'}", "--objective=classification", f"--data={place / 'a.tsv'}",
         f"--eval_data=dev={place / 'dev.tsv'}", f"--workdir={tmp_path / 'run'}", "--steps=1", *QUICK])  # fmt: skip
    said = capsys.readouterr().err
    assert "--config.optimizer.schedule=linear" in said
    assert "--config.optimizer.learning_rate=0.003" in said
    assert "--config.epochs" not in said, "--steps says when the run ends"
    line = next(line for line in said.splitlines() if "loaded backbone, embedding (" in line)
    assert "new classifier_head (" in line
    assert "labels: 7, animal, plant" in line
    assert "optimizer and step start from zero" in line


def test_predictions_are_those_of_the_model(place, tmp_path, capsys):
    output = tmp_path / "predictions.jsonl"
    found = run(["predict", f"--workdir={place / 'run'}", f"--data={place / 'dev.tsv'}", f"--output={output}"])
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert records == found
    loaded = load_model(place / "run")
    assert labels_of_loaded(loaded) == LABELS
    rows = [*ROWS[::3], ("", "7")]
    scores = probabilities(loaded, [text for text, _ in rows])
    for record, (text, label), row in zip(records, rows, scores, strict=True):
        assert (record["text"], record["gold"]) == (text, label)
        assert record["label"] == LABELS[row.argmax()]
        assert record["score"] == max(record["scores"].values())
        np.testing.assert_allclose([record["scores"][name] for name in LABELS], row, atol=1e-6)
    new = tmp_path / "new.jsonl"
    new.write_text('{"text": "the fox"}\n{"text": ""}\n')
    capsys.readouterr()
    assert len(run(["predict", f"--workdir={place / 'run'}", f"--data={new}"])) == 2
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_metrics_do_not_depend_on_the_batch(place, capsys):
    loaded = load_model(place / "run")
    texts = read_documents(str(place / "dev.tsv"), loaded.task)
    gold = [LABELS.index(each.values[0]) for each in texts]
    scores = [probabilities(loaded, [each.segments[0] for each in texts], size) for size in (1, 7, 64)]
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=1e-6)
    one, *others = (single_label(gold, each.argmax(axis=1), LABELS).measured(20) for each in scores)
    assert others == [one, one]
    output = place / "metrics.json"
    found = run(["evaluate", f"--workdir={place / 'run'}", f"--data=dev={place / 'dev.tsv'}",
                 f"--output={output}"])["dev"]  # fmt: skip
    assert {name: found[name] for name in ("accuracy", "f1 macro", "matthews")} == pytest.approx(
        {name: one[name] for name in ("accuracy", "f1 macro", "matthews")}
    )
    assert found["records"] == len(texts)
    shown = capsys.readouterr().out
    assert f"{found['f1 plant'].high:.4f}" in shown
    assert "classification, 95 % intervals over the records" in shown
    content = json.loads(output.read_text())
    assert content["results"]["dev"] == found
    assert content["intervals"]["dev"]["brier"] == [found["brier"].low, found["brier"].high]


def test_a_run_draws_its_last_evaluation(place):
    """PNG files in the workdir, and images for TensorBoard, of the evaluation set."""
    pytest.importorskip("matplotlib")
    names = {path.name for path in (place / "run" / "figures").glob("*.png")}
    assert names == {
        f"dev_classification_{kind}.png" for kind in ("confusion", "f1", "precision_recall", "reliability")
    }
    # Their events are tested in tests/training/test_board.py; this run has TensorBoard off.


def test_two_models_are_compared_on_the_same_records(place, tmp_path, capsys):
    """A model less itself is 0 with p = 1; McNemar counts what only one of them has right; predictions are written."""
    data, output = f"--data={place / 'dev.tsv'}", tmp_path / "predictions.jsonl"
    run(["evaluate", f"--workdir={place / 'run'}", f"--against={place / 'run'}", data, f"--predictions={output}"])
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("accuracy "))
    assert line.split()[3:] == ["0.0000", "0.0000", "0.0000", "1.000"]
    assert "right by the first alone: 0, by the second alone: 0; McNemar's exact test: p = 1" in shown
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [r["gold"] for r in records] == [label for _, label in [*ROWS[::3], ("", "7")]]
    assert all(r["score"] == max(r["scores"].values()) for r in records)
    with pytest.raises(FlagError, match=f"--predictions={output}: exists, and is never overwritten"):
        run(["evaluate", f"--workdir={place / 'run'}", data, f"--predictions={output}"])
    with pytest.raises(FlagError, match=r"--against=.*: is for models that were fine-tuned for a task on records"):
        run(["evaluate", f"--workdir={place / 'pre'}", f"--against={place / 'run'}", data])


def test_an_ensemble_averages_the_probabilities(place, tmp_path):
    """Two models: the mean of their probabilities; one model twice: its own."""
    other = tmp_path / "other"
    run(["train", f"--init_from={place / 'run'}", "--objective=classification", f"--data={place / 'a.tsv'}",
         f"--eval_data=dev={place / 'dev.tsv'}", f"--workdir={other}", "--steps=2", *QUICK])  # fmt: skip
    models = [load_model(place / "run"), load_model(other)]
    documents = read_documents(str(place / "dev.tsv"), models[0].task)
    one, two, both = (
        [list(each["scores"].values()) for each in evaluate_models(some, documents).predictions]
        for some in ([models[0]], [models[1]], models)
    )
    np.testing.assert_allclose(both, np.mean([one, two], axis=0), atol=1e-7)
    assert np.abs(np.subtract(one, two)).max() > 1e-4
    found = run(["evaluate", f"--workdir={place / 'run'},{other}", f"--data=dev={place / 'dev.tsv'}"])["dev"]
    assert found["accuracy"] == evaluate_models(models, documents).metrics(0)["accuracy"]
    with pytest.raises(FlagError, match=r"the ensemble .*: is for models that were fine-tuned"):
        run(["evaluate", f"--workdir={place / 'pre'},{place / 'pre'}", f"--data={place / 'dev.tsv'}"])


def test_models_of_other_labels_are_not_compared(place, tmp_path):
    two = written(tmp_path / "two.tsv", [row for row in ROWS if row[1] != "7"])
    run(["train", f"--init_from={place / 'pre'}", "--objective=classification", f"--data={two}", "--steps=1",
         f"--eval_data=dev={written(tmp_path / 'd.tsv', ROWS[:2])}", f"--workdir={tmp_path / 'two'}",
         *QUICK])  # fmt: skip
    said = r"classification of label \(7, animal, plant\), and classification of label \(animal, plant\); compare or"
    with pytest.raises(FlagError, match=said):
        run(["evaluate", f"--workdir={place / 'run'}", f"--against={tmp_path / 'two'}", f"--data={place / 'dev.tsv'}"])
    with pytest.raises(FlagError, match=said):
        run(["evaluate", f"--workdir={place / 'run'},{tmp_path / 'two'}", f"--data={place / 'dev.tsv'}"])


def _lacking(path):
    path.write_text("words\nan owl\n")
    return path


def test_an_unknown_label_is_refused_with_its_line(place, tmp_path, monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("the parameters are read, although the data cannot be used")

    # Reading the parameters of a large model takes minutes.
    monkeypatch.setattr("lmjax.commands.models.load_model", load)
    data = written(tmp_path / "x.tsv", [ROWS[0], ("a fly", "insect")])
    with pytest.raises(DataError, match=r"x.tsv:3: 'label' is 'insect'; the known ones are 7, animal, plant"):
        run(["evaluate", f"--workdir={place / 'run'}", f"--data={data}"])
    with pytest.raises(FlagError, match="was not fine-tuned to predict something for each record"):
        run(["predict", f"--workdir={place / 'pre'}", f"--data={data}"])
    with pytest.raises(DataError, match=r"y.tsv:1: no 'text' among the fields"):
        run(["predict", f"--workdir={place / 'run'}", f"--data={_lacking(tmp_path / 'y.tsv')}"])
    with pytest.raises(FlagError, match="is not a record"):
        evaluate(load_model(place / "run"), ["a text"], task="own")


def test_training_goes_on_from_a_classifier_with_its_labels(place, tmp_path, capsys):
    """Data with some of its labels keeps the others; other labels need a new head."""
    two = written(tmp_path / "two.tsv", [row for row in ROWS if row[1] != "7"])
    argv = ["train", f"--init_from={place / 'run'}", "--objective=classification", f"--data={two}", "--steps=1",
            f"--eval_data=dev={written(tmp_path / 'd.tsv', ROWS[:2])}", *QUICK]  # fmt: skip
    run([*argv, f"--workdir={tmp_path / 'more'}"])
    assert labels_of(tmp_path / "more") == LABELS
    assert "new " not in next(line for line in capsys.readouterr().err.splitlines() if "loaded " in line)
    run([*argv, f"--workdir={tmp_path / 'anew'}", "--config.fresh=classifier_head"])
    assert labels_of(tmp_path / "anew") == LABELS[1:]
    with pytest.raises(FlagError, match=r"--config.fresh=head: this model has no such part; choose from"):
        run([*argv, f"--workdir={tmp_path / 'x'}", "--config.fresh=head"])


def test_a_run_without_its_labels_is_not_opened(place, tmp_path):
    for file in (place / "run").glob("*.*"):
        if file.name != "labels.json":
            shutil.copy(file, tmp_path)
    with pytest.raises(DataError, match=r"labels.json: is missing; copy it back, or give the training command again"):
        open_pretrained(tmp_path)


def test_a_classifier_goes_out_and_comes_in_with_its_labels(place, tmp_path):
    out = tmp_path / "hf"
    run(["convert", f"--workdir={place / 'run'}", f"--to={out}"])
    values = json.loads((out / "config.json").read_text())
    assert values["id2label"] == {str(i): name for i, name in enumerate(LABELS)}
    assert values["label2id"] == {name: i for i, name in enumerate(LABELS)}
    texts = [text for text, _ in ROWS[:5]]
    expected = probabilities(load_model(place / "run"), texts)
    back = load_model(out)
    assert labels_of_loaded(back) == LABELS
    run(["convert", f"--from={out}", f"--workdir={tmp_path / 'in'}"])
    for each in (back, load_model(tmp_path / "in")):
        np.testing.assert_allclose(probabilities(each, texts), expected, atol=1e-5)
    found = run(["evaluate", f"--model={out}", f"--data=dev={place / 'dev.tsv'}"])["dev"]
    assert found["records"] == len(ROWS[::3]) + 1
    run(["train", f"--init_from={out}", "--objective=classification", f"--data={place / 'a.tsv'}", "--steps=1",
         f"--eval_data=dev={place / 'dev.tsv'}", f"--workdir={tmp_path / 'on'}", *QUICK])  # fmt: skip
    assert labels_of(tmp_path / "on") == LABELS


@pytest.mark.filterwarnings("ignore")
def test_transformers_gives_the_same_logits(place, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    run(["convert", f"--workdir={place / 'run'}", f"--to={tmp_path / 'hf'}"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    assert model.config.id2label == dict(enumerate(LABELS))
    loaded = load_model(place / "run")
    for text, _ in ROWS[:3]:
        ids = loaded.encode(text)
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(loaded([ids]).heads["classifier"][0], expected, atol=1e-5)
