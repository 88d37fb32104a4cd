"""Taggers: from records to predictions and metrics, and out to Hugging Face and in again."""

import json

import numpy as np
import pytest

from lmjax.cli import run
from lmjax.data.documents import spaced
from lmjax.errors import DataError
from lmjax.evaluation.predicted import as_documents, encoded
from lmjax.inference.predict import predict
from lmjax.runs.pretrained import open_pretrained
from lmjax.runs.trained import load_model

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("all_devices")]

SMALL = ("--preset=bert_tiny", "--config.model.embed_dim=16", "--config.model.num_heads=2", "--config.model.mlp_dim=32",
         "--config.model.max_length=32", "--config.task.length=32", "--config.tokenizer.kind=char", "--noprogress",
         "--config.tokenizer.byte_fallback=false", "--config.logging.tensorboard=false", "--batch_size=8",
         "--lr=0.003")  # fmt: skip
SENTENCES = [(f"{a} sees {b}".split(), ("B-p", "O", tag)) for a in ("ada", "bob", "eve") for b, tag in
             (("oslo", "B-q"), ("rome", "B-q"), ("ada", "B-p"))]  # fmt: skip
LABELS = ("B-p", "B-q", "O")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """The folder of a tagger's data and of its workdir."""
    folder = tmp_path_factory.mktemp("tagger")
    for name, sentences in (("train", SENTENCES), ("dev", SENTENCES[:4])):
        lines = ("\n".join(f"{word} {tag}" for word, tag in zip(*each, strict=True)) for each in sentences)
        (folder / f"{name}.conll").write_text("-DOCSTART- O\n\n" + "\n\n".join(lines) + "\n")
    run(["train", "--objective=tagging", "--config.task.tagging.scheme=bio", f"--data={folder / 'train.conll'}",
         f"--eval_data=dev={folder / 'dev.conll'}", f"--workdir={folder / 'run'}", "--steps=40", *SMALL])  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr("lmjax.evaluation.predicted.RESAMPLES", 30)


def found(loaded, sentences=SENTENCES):
    """Returns the predictions for sentences without labels."""
    records = as_documents([{"words": words} for words, _ in sentences], loaded.task, gold=False)
    return predict(loaded, encoded(loaded, records, gold=False))


def test_predictions_name_the_words_their_labels_and_entities(tagger, tmp_path, capsys):
    output = tmp_path / "predictions.jsonl"
    run(["predict", f"--workdir={tagger / 'run'}", f"--data={tagger / 'dev.conll'}", f"--output={output}"])
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [each["words"] for each in records] == [words for words, _ in SENTENCES[:4]]
    assert [each["gold"] for each in records] == [list(tags) for _, tags in SENTENCES[:4]]
    assert {len(each["tags"]) for each in records} == {len(each["scores"]) for each in records} == {3}
    plain = tmp_path / "new.txt"
    plain.write_text("ada\nsees\n\nbob\n")
    capsys.readouterr()
    new = run(["predict", f"--workdir={tagger / 'run'}", f"--data={plain}"])
    assert [each["words"] for each in new] == [["ada", "sees"], ["bob"]]
    assert capsys.readouterr().out.splitlines() == [" ".join(each["tags"]) for each in new]


def test_metrics_of_a_tagger(tagger, tmp_path):
    metrics = run(["evaluate", f"--workdir={tagger / 'run'}", f"--data=dev={tagger / 'dev.conll'}"])["dev"]
    tags = [tag for each in found(load_model(tagger / "run"), SENTENCES[:4]) for tag in each["tags"]]
    gold = [tag for _, of in SENTENCES[:4] for tag in of]
    assert metrics["accuracy"] == np.mean([a == b for a, b in zip(tags, gold, strict=True)])
    assert {"f1 micro", "f1 macro", "recall q"} <= metrics.keys()
    assert metrics["f1 p"].low <= metrics["f1 p"] <= metrics["f1 p"].high
    wrong = tmp_path / "x.conll"
    wrong.write_text("ada B-p\n\nada O\nbob B-x\n")
    with pytest.raises(DataError, match=r"x.conll:3: 'tags' is 'B-x'; the known ones are B-p, B-q, O"):
        run(["evaluate", f"--workdir={tagger / 'run'}", f"--data={wrong}"])


@pytest.fixture(scope="module")
def exported(tagger):
    run(["convert", f"--workdir={tagger / 'run'}", f"--to={tagger / 'hf'}"])
    return tagger / "hf"


def test_a_tagger_goes_out_and_comes_in_with_its_labels(tagger, exported):
    values = json.loads((exported / "config.json").read_text())
    assert values["id2label"] == {str(i): name for i, name in enumerate(LABELS)}
    assert open_pretrained(exported).tasks["tagging"].labels == LABELS
    ours, back = (found(load_model(place)) for place in (tagger / "run", exported))
    assert [each["tags"] for each in ours] == [each["tags"] for each in back]
    np.testing.assert_allclose([x["scores"] for x in ours], [x["scores"] for x in back], atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_transformers_tags_as_the_tagger_does(tagger, exported):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForTokenClassification.from_pretrained(exported).eval()
    assert model.config.id2label == dict(enumerate(LABELS))
    loaded = load_model(tagger / "run")
    ids = loaded.encode("ada sees oslo")
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(loaded([ids]).heads["tagger"][0][: len(ids)], expected, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    pipe = transformers.pipeline("token-classification", model=model, tokenizer=tokenizer, ignore_labels=[])
    for (words, _), ours in zip(SENTENCES, found(loaded), strict=True):
        theirs = {token["start"]: token for token in pipe(" ".join(words))}
        begins = np.cumsum([0, *map(len, spaced(words))])[:-1]
        assert [theirs[at]["entity"] for at in begins] == ours["tags"]
        np.testing.assert_allclose([theirs[at]["score"] for at in begins], ours["scores"], atol=1e-5)
