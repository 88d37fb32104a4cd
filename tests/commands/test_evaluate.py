"""`lmjax evaluate`: it gives the numbers of the Python functions, and names file and line of every error."""

import importlib.util
import json
import re

import pytest

import lmjax
from lmjax.cli import run
from lmjax.commands import evaluate_flags
from lmjax.commands.evaluate import table
from lmjax.data.records import FieldNames
from lmjax.errors import DataError, FlagError
from lmjax.evaluation.intervals import Measured
from lmjax.evaluation.tasks import TASKS, evaluate, read
from lmjax.inference.score.score import Question, multiple_choice, perplexity, score
from lmjax.inference.score.texts import Item, ScoreConfig
from lmjax.runs.trained import load_model
from tests.inference.scoring import tiny

FIELDS = {
    "minimal_pairs": {"good": "The king", "bad": "king The"},
    "choices": {"context": "The", "choices": [" king", " queen"], "answer": 1},
    "pairs": {"source": "The old", "target": " tree."},
}


def written(path, *records: dict):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_perplexity_of_two_sets_from_a_folder_to_a_file(folder, tmp_path, capsys):
    texts = ["The young king goes.", "A queen sees the river house, never the houses; kings and queens."]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    data = written(tmp_path / "b.jsonl", {"text": texts[1]})
    output = tmp_path / "results.json"
    argv = ["evaluate", f"--model={folder}", f"--data={tmp_path / 'a.txt'}", f"--data=b={data}", f"--output={output}"]
    found = run(argv)
    loaded = load_model(str(folder))
    assert found[str(tmp_path / "a.txt")] == pytest.approx(perplexity(loaded, texts))
    assert found["b"] == pytest.approx(perplexity(loaded, texts[1:]))
    assert found[str(tmp_path / "a.txt")]["bits_per_byte"].low < found["b"]["bits_per_byte"]
    saved = json.loads(output.read_text())
    assert saved["results"] == found
    assert (saved["task"], saved["model"], saved["config"]["stride"]) == ("perplexity", str(folder), None)
    shown = capsys.readouterr().out
    assert f"{found['b']['bits_per_byte']:.4f}" in shown
    assert "decoder, log-likelihoods" in shown
    with pytest.raises(FlagError, match=r"--output=.*results\.json: exists, and is never overwritten"):
        run(argv)


def test_tasks_give_what_the_functions_give(tmp_path):
    loaded, config = tiny("decoder"), ScoreConfig()
    records = {task: [fields, *others] for (task, fields), others in zip(
        FIELDS.items(),
        ([{"good": "river A", "bad": "A river"}], [{"context": "", "choices": ["a", " b"], "answer": 0}], []),
        strict=True,
    )}  # fmt: skip
    found = {
        task: evaluate(loaded, written(tmp_path / f"{task}.jsonl", *records[task]), config, task=task)
        for task in FIELDS
    }
    texts = ["The king", "king The", "river A", "A river"]
    nats = [s.log_likelihood for s in score(loaded, [Item("", text) for text in texts])]
    assert found["minimal_pairs"] == {"accuracy": ((nats[0] > nats[1]) + (nats[2] > nats[3])) / 2, "pairs": 2}
    questions = [Question("The", [" king", " queen"], 1), Question("", ["a", " b"], 0)]
    assert found["choices"] == multiple_choice(loaded, questions)
    (pair,) = score(loaded, [Item("The old", " tree.")])
    assert found["pairs"]["nats_per_token"] == pytest.approx(-pair.log_likelihood / pair.tokens)
    assert (found["pairs"]["bytes"], found["pairs"]["greedy"]) == (6, float(pair.greedy))
    assert all(f"{x:.4f}" in table(found) for x in found["choices"].values() if isinstance(x, float))


def test_a_list_gives_what_a_file_gives_and_a_mistake_a_sentence(tmp_path):
    """Each task from Python values; the command describes exactly the existing tasks."""
    loaded, config = tiny("decoder"), ScoreConfig()
    assert set(evaluate_flags.TASKS) == set(TASKS)
    lists = {"minimal_pairs": [("The king", "king The")], "choices": [("The", [" king", " queen"], 1)],
             "pairs": [("The old", " tree.")]}  # fmt: skip
    for task, records in lists.items():
        path = written(tmp_path / f"{task}.jsonl", FIELDS[task])
        assert evaluate(loaded, records, task=task) == evaluate(loaded, str(path), config, task=task)
    assert evaluate(loaded, ["The king"]) == perplexity(loaded, ["The king"])
    for call, message in (
        (lambda: evaluate("runs/mine", ["A"]), "the model is 'runs/mine', a str; give what lmjax.load_model"),
        (lambda: evaluate(loaded, ["A"], {"stride": 3}), r"config is .*, a dict; give a ScoreConfig\("),
        (lambda: evaluate(loaded, ["A"], task="pair"), "task='pair': no such task; did you mean pairs"),
        (lambda: evaluate(loaded, ["A"], task="pairs"), r"data\[0\]: 'A' is not a source and a target; give 2 values"),
        (lambda: evaluate(loaded, []), "data: is empty"),
        (lambda: evaluate(loaded, 3), "data='3' is a int; give a list"),
        (lambda: score(loaded, ["A text"]), r"items\[0\]: 'A text' is not a context and continuation"),
        (lambda: lmjax.load_model(3), "place is '3', a int; give a folder"),
        (lambda: lmjax.load_model(tmp_path / "none"), "none: there is no such folder"),
        (lambda: lmjax.train({}, tmp_path / "run"), r"config is '\{\}', a dict; give what lmjax.resolve"),
        (lambda: lmjax.resolve(objective="mlm,nsp"), r"objective='mlm,nsp' is one text; give .*\('mlm', 'nsp'\)"),
        (lambda: lmjax.resolve(overrides={"seed": 3}), "overrides: seed=3 is not text"),
        (lambda: lmjax.generate("runs/mine", ["A"]), "the model is 'runs/mine', a str"),
        (lambda: lmjax.generate(loaded, ["A"], {"seed": 1}), r"config is .*, a dict; give a GenerateConfig\("),
        (lambda: lmjax.fill_mask(loaded, "A"), "texts='A' is one text; give a list"),
        (lambda: perplexity(loaded, "A text"), "texts='A text' is one text; give a list of texts"),
    ):
        with pytest.raises(FlagError, match=message):
            call()


def test_csv_holds_choices_as_json(tmp_path):
    path = tmp_path / "questions.csv"
    path.write_text('context,choices,answer\nThe,"["" king"", "" queen""]",1\n')
    assert read("choices", str(path)) == ([f"{path}:2"], [Question("The", [" king", " queen"], 1)])


def test_fields_of_other_names_are_read(tmp_path):
    path = written(tmp_path / "a.jsonl", {"body": "b", "de": "d", "en": "e"})
    names = FieldNames("body", "de", "en")
    assert read("perplexity", str(path), names).records == ["b"]
    assert read("pairs", str(path), names).records == [("d", "e")]
    with pytest.raises(DataError, match="no 'source'; a pair needs source and target"):
        read("pairs", str(path))


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("minimal_pairs", {"bad": None}, "'bad' is 'None', not a string; a minimal pair needs good and bad"),
        ("minimal_pairs", {"good": " "}, "'good' is empty"),
        ("choices", {"answer": 2}, "'answer' is '2', and there are 2 choices"),
        ("choices", {"answer": "b"}, "'answer' is 'b', which is not JSON"),
        ("choices", {"choices": ["x"]}, "not a list of two or more texts"),
        ("pairs", {"target": 3}, "'target' is '3', not a string; a pair needs source and target"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(task, change, message, tmp_path):
    path = written(tmp_path / "bad.jsonl", FIELDS[task], FIELDS[task] | change)
    with pytest.raises(DataError, match=re.escape(f"{path}:2: {message}") if "not a list" not in message else message):
        read(task, str(path))


def test_files_that_are_no_records(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"good": "a", "bad": "b"}\n[1]\n')
    (tmp_path / "b.jsonl").write_bytes(b'{"good": "\xff"}\n')
    (tmp_path / "c.csv").write_text("good,bad\na\n")
    (tmp_path / "d.jsonl").write_text("{\n")
    (tmp_path / "e.txt").write_text("good")
    (tmp_path / "f.jsonl").write_text("\n")
    for name, message in {
        "a.jsonl": ":2: a JSON list",
        "b.jsonl": ":1: not UTF-8",
        "c.csv": ":2: 1 fields, but the header has 2",
        "d.jsonl": ":1: not JSON",
        "e.txt": ": not a file of records",
        "f.jsonl": "' holds no records",
    }.items():
        with pytest.raises(DataError, match=re.escape(f"{name}{message}")):
            read("minimal_pairs", str(tmp_path / name))


def test_a_record_that_is_too_long_is_named_by_file_and_line(tmp_path):
    path = written(tmp_path / "long.jsonl", FIELDS["pairs"], {"source": "queen " * 30, "target": "a"})
    with pytest.raises(FlagError, match=r"long\.jsonl:2: its context has \d+ tokens, but the model has room for 15"):
        evaluate(tiny("decoder"), path, ScoreConfig(), task="pairs")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "one of --model=PLACE and --workdir=DIR; none given"),
        (("--model=a", "--workdir=b", "--data=c"), "--model, --workdir given"),
        (("--model=a",), "needs --data=FILE, or --harness=TASKS"),
        (("--model=a", "--data=b", "--harness=c"), "give one of them"),
        (("--model=a", "--data=b", "--limit=3"), "--limit=3: is for --harness"),
        (("--model=a", "--data=b", "--stride=0"), "--stride=0: input should be greater than or equal to 1"),
        (("--model=a", "--data=n=b", "--data=n=c"), "two sets are called 'n'"),
        (("--model=a", "--data=b", "--output=no/where.json"), "is in a folder that does not exist"),
        (("--model=a", "--data=nowhere.txt"), "no file matches 'nowhere.txt'"),
        (("--model=a", "--data=b", "--config.model.dtype=float32"), "evaluate has no config"),
    ],
)
def test_flags_that_do_not_fit(argv, message):
    with pytest.raises((FlagError, DataError), match=re.escape(message)):
        run(["evaluate", *argv])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_the_message_says_how_to_get_it(folder):
    with pytest.raises(FlagError, match=r"--harness=arc_easy: lm-eval is not installed: pip install"):
        run(["evaluate", f"--model={folder}", "--harness=arc_easy"])


def test_help_lists_the_tasks(capsys):
    assert run(["evaluate", "--help"]) is None
    shown = capsys.readouterr().out
    assert "--task=perplexity|minimal_pairs|choices|pairs" in shown
    assert "--stride" in shown


def test_a_table_has_a_row_for_each_metric_with_an_interval():
    metrics = {"bleu": Measured(41.25, 40.0, 42.5, "case:lc|version:2"), "ter": Measured(0.5), "texts": 1000}
    lines = [line.split() for line in table({"dev": metrics, "test": metrics}).splitlines()]
    assert (lines[4][0], lines[5:8]) == ("test", lines[1:4])
    assert lines[:4] == [["dev", "2.5%", "97.5%"], ["bleu", "41.2500", "40.0000", "42.5000"], ["ter", "0.5000"],
                         ["texts", "1,000"]]  # fmt: skip
    assert lines[8:] == [["bleu:", "case:lc|version:2"]]
