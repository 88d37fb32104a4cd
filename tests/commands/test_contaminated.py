"""`lmjax evaluate --training_data`: metrics of all examples, of the clean ones, and of those in the training data."""

import json

import pytest

from lmjax.cli import run
from lmjax.errors import DataError, FlagError
from lmjax.evaluation.tasks import evaluate
from lmjax.runs.trained import load_model


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_contaminated_examples_are_measured_apart(folder, tmp_path, capsys):
    words = "the old king goes under the tree and the young queen never sees the river again"
    words = words.replace("again", "and the house").split()
    texts = [" ".join(words), "A queen sees.", " ".join(words[::-1])]
    data = lines(tmp_path / "dev.jsonl", *({"text": text} for text in texts))
    # The first text stands in the training data with other case and punctuation; of the third, twelve words in a row.
    training = [f"So it is: {texts[0].title()}! And so on.", f"{' '.join(words[::-1][:12])} x", "A queen never sees."]
    known = lines(tmp_path / "train.jsonl", *({"text": text} for text in training))
    argv = ["evaluate", f"--model={folder}", f"--data=dev={data}", f"--training_data={known}"]
    found, loaded = run(argv), load_model(folder)
    assert [*found] == ["dev", "dev, clean", "dev, contaminated"]
    for name, own in (("dev", texts), ("dev, clean", texts[1:]), ("dev, contaminated", texts[:1])):
        assert found[name] == pytest.approx(evaluate(loaded, own)), name
    assert "dev: 1 of 3 examples stand in" in capsys.readouterr().out
    assert [*run([*argv, "--ngram=12"])["dev, contaminated"].values()] != [*found["dev, contaminated"].values()]
    # Where no example or every example is contaminated, there is nothing to tell apart.
    assert [*run([*argv, "--ngram=1"])] == ["dev"]


def test_all_texts_of_a_record_are_looked_for(folder, tmp_path):
    questions = [{"context": "The old", "choices": [" king", " queen"], "answer": 0},
                 {"context": "A young", "choices": [" king", " queen"], "answer": 1}]  # fmt: skip
    data = lines(tmp_path / "exam.jsonl", *questions)
    known = lines(tmp_path / "train.jsonl", {"text": "They ask: a young king, queen?"})
    found = run(["evaluate", f"--model={folder}", "--task=choices", f"--data=exam={data}", f"--training_data={known}"])
    assert [*found] == ["exam", "exam, clean", "exam, contaminated"]


def test_what_does_not_go_with_training_data_is_refused(folder, tmp_path):
    data = lines(tmp_path / "dev.jsonl", {"text": "a"})
    argv = ["evaluate", f"--model={folder}", f"--data={data}"]
    with pytest.raises(DataError, match=r"--training_data: .*gone\.jsonl"):
        run([*argv, f"--training_data={tmp_path / 'gone.jsonl'}"])
    with pytest.raises(FlagError, match="--training_data and --predictions: predictions has each example once"):
        run([*argv, f"--training_data={data}", f"--predictions={tmp_path / 'p.jsonl'}"])
