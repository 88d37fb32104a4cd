"""Question answering: from files of SQuAD to answers and metrics, and out to Hugging Face and in again."""

import json

import numpy as np
import pytest

from lmjax.cli import run
from lmjax.evaluation.predicted import as_documents, encoded
from lmjax.inference.predict import predict
from lmjax.runs.pretrained import open_pretrained
from lmjax.runs.trained import load_model

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("all_devices")]

SMALL = ("--preset=bert_tiny", "--config.model.embed_dim=16", "--config.model.num_heads=2", "--config.model.mlp_dim=32",
         "--config.model.max_length=64", "--config.task.length=64", "--noprogress", "--batch_size=8", "--lr=0.003",
         "--config.logging.tensorboard=false")  # fmt: skip
CONTEXTS = ("ada lives in oslo.", "in rome bob lives.", "eve is a fox of rome.")
ASKED = [(context, f"where is {name}?", answer) for context, name, answer in
         zip(CONTEXTS, ("ada", "bob", "eve"), ("oslo", "rome", "rome"), strict=True)]  # fmt: skip


@pytest.fixture(scope="module")
def asked(tmp_path_factory, tokenizer):
    """The folder of questions in the format of SQuAD, and of the workdir of a model that learned them."""
    folder = tmp_path_factory.mktemp("asked")
    tokenizer.save(str(folder / "letters.model"))
    for name, copies in (("train", 8), ("dev", 1)):
        paragraphs = [
            {"context": c, "qas": [{"id": f"{c[0]}{i}", "question": q,
                                    "answers": [{"text": a, "answer_start": c.index(a)}]} for i in range(copies)]}
            for c, q, a in ASKED]  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    run(["train", "--objective=question_answering", f"--config.tokenizer.path={folder / 'letters.model'}",
         f"--data={folder / 'train.json'}", f"--eval_data=dev={folder / 'dev.json'}", f"--workdir={folder / 'run'}",
         "--steps=30", "--config.task.question_answering.no_answer=true",
         "--config.task.question_answering.threshold=50", *SMALL])  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    from lmjax.data.tokenizer import TokenizerConfig, train_tokenizer

    return train_tokenizer(["abcdefghijklmnopqrstuvwxyz ?."] * 2, TokenizerConfig(kind="char", byte_fallback=False))


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr("lmjax.evaluation.predicted.RESAMPLES", 30)


def found(loaded):
    records = [{"context": c, "question": q} for c, q, _ in ASKED]
    return predict(loaded, encoded(loaded, as_documents(records, loaded.task, gold=False), gold=False))


def test_answers_are_parts_of_their_contexts_and_are_measured(asked, tmp_path, capsys):
    output = tmp_path / "predictions.jsonl"
    run(["predict", f"--workdir={asked / 'run'}", f"--data={asked / 'dev.json'}", f"--output={output}"])
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(each["context"], each["question"], each["gold answers"]) for each in records] == [
        (c, q, [a]) for c, q, a in ASKED]  # fmt: skip
    for each in records:
        assert each["context"][each["start"] : each["end"]] == each["answer"] == each["candidates"][0]["answer"]
    plain = tmp_path / "new.jsonl"
    plain.write_text(json.dumps({"context": CONTEXTS[0], "question": "who?"}) + "\n")
    capsys.readouterr()
    (new,) = run(["predict", f"--workdir={asked / 'run'}", f"--data={plain}"])
    assert capsys.readouterr().out == f"{new['answer']}\t{new['score']:.4f}\n"
    metrics = run(["evaluate", f"--workdir={asked / 'run'}", f"--data=dev={asked / 'dev.json'}"])["dev"]
    exact = np.mean([each["answer"] == answer for each, (*_, answer) in zip(records, ASKED, strict=True)])
    assert metrics["exact_match"] == exact
    assert metrics["f1"].low <= metrics["f1"] <= metrics["f1"].high


@pytest.fixture(scope="module")
def exported(asked):
    run(["convert", f"--workdir={asked / 'run'}", f"--to={asked / 'hf'}"])
    return asked / "hf"


def test_a_model_that_answers_goes_out_and_comes_in(asked, exported, tmp_path):
    assert json.loads((exported / "config.json").read_text())["architectures"] == ["BertForQuestionAnswering"]
    run(["convert", f"--from={exported}", f"--workdir={tmp_path / 'in'}"])
    for place in (asked / "run", exported, tmp_path / "in"):
        found_there = open_pretrained(place)
        settings = found_there.tasks["question_answering"]
        assert (settings.no_answer, settings.threshold, settings.overlap) == (True, 50, 128), place
        assert found_there.length == 64
    for ours, back in zip(*(found(load_model(place)) for place in (asked / "run", exported)), strict=True):
        assert ours["answer"] == back["answer"]
        assert ours["score"] == pytest.approx(back["score"], abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_transformers_answers_as_the_model_does(asked, exported):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(exported).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    loaded = load_model(asked / "run")
    for (context, question, _), ours in zip(ASKED, found(loaded), strict=True):
        inputs = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
        offsets, there = inputs.pop("offset_mapping")[0].tolist(), inputs.sequence_ids(0)
        with torch.no_grad():
            outputs = model(**inputs)
        start, end = (x[0].double().numpy() for x in (outputs.start_logits, outputs.end_logits))
        record = encoded(loaded, as_documents([{"context": context, "question": question}], loaded.task, gold=False),
                         gold=False)[0]  # fmt: skip
        (row,) = loaded.task.reads(record, loaded.prompts, loaded.task.length)
        count = int((row["segment_ids"] > 0).sum())
        assert row["tokens"][:count].tolist() == inputs["input_ids"][0].tolist()
        assert row["type_ids"][:count].tolist() == inputs["token_type_ids"][0].tolist()
        # The best answer and its probability by hand, from the logits of transformers.
        allowed = np.array([i == 0 or each == 1 for i, each in enumerate(there)])
        probabilities = [np.exp(x - np.logaddexp.reduce(x[allowed])) for x in (start, end)]
        scores = {(i, j): probabilities[0][i] * probabilities[1][j] for i in range(count) for j in range(i, count)
                  if allowed[i] and allowed[j] and i and j - i < loaded.task.config.max_answer}  # fmt: skip
        i, j = max(scores, key=scores.get)
        assert context[offsets[i][0] : offsets[j][1]].strip() == ours["answer"]
        assert ours["score"] == pytest.approx(scores[i, j], abs=1e-5)
    if "question-answering" in transformers.pipelines.SUPPORTED_TASKS:
        pipe = transformers.pipeline("question-answering", model=model, tokenizer=tokenizer)
        for (context, question, _), ours in zip(ASKED, found(loaded), strict=True):
            theirs = pipe(question=question, context=context, max_answer_len=loaded.task.config.max_answer)
            assert theirs["answer"].strip() == ours["answer"]
            assert theirs["score"] == pytest.approx(ours["score"], abs=1e-5)
