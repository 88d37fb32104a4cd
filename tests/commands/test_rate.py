"""`lmjax rate`: answers are sampled, rated at a terminal or from a file, and kept whatever ends the command."""

import io
import json
import os
import pathlib
import sys

import pytest

import lmjax
from lmjax.cli import run
from lmjax.commands.rate import Pair, ask, shown
from lmjax.errors import DataError, FlagError

PROMPTS = ("A queen", "The king", "Oslo", "He goes")
RATED = {"prompt": "p", "a": "x", "b": "y", "choice": "a"}


class Terminal(io.StringIO):
    """A terminal that is not read from: the tests replace `input`."""

    def isatty(self):
        return True


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


@pytest.fixture
def rate(folder, prompts, tmp_path, monkeypatch):
    """Returns a function that runs the command on the small model, and gives these answers at the terminal."""

    def command(*flags, said=()):
        keys = iter(said)

        def read(_):
            key = next(keys)
            if isinstance(key, BaseException):
                raise key
            return key

        monkeypatch.setattr(sys, "stdin", Terminal() if said else io.StringIO(""))
        monkeypatch.setattr("builtins.input", read)
        given = [f"--model={folder}", f"--prompts={prompts}", "--max_new_tokens=5"]
        return run(["rate", *given, *flags])

    return command


def lines(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def test_two_answers_differ_and_depend_on_seed_and_place_alone(rate, tmp_path):
    for name, flags in (("one", ("--batch_size=2",)), ("two", ("--batch_size=8",)), ("other", ("--seed=9",))):
        count = rate(f"--answers={tmp_path / name}.jsonl", *flags)
        assert count == len(lines(tmp_path / f"{name}.jsonl"))
    one, two, other = (lines(tmp_path / f"{name}.jsonl") for name in ("one", "two", "other"))
    assert [each["prompt"] for each in one] == [*PROMPTS]
    assert other, "pairs of equal answers are left out"
    assert one == two != other
    assert all(each["a"] != each["b"] for each in one)


def test_the_terminal_is_asked_and_an_interruption_loses_nothing(rate, tmp_path, capsys):
    to = tmp_path / "to.jsonl"
    rate(f"--answers={tmp_path / 'all.jsonl'}")
    pairs = {each["prompt"]: each for each in lines(tmp_path / "all.jsonl")}
    with pytest.raises(KeyboardInterrupt):
        rate(f"--to={to}", said=["b", KeyboardInterrupt()])
    assert lines(to) == [{"prompt": PROMPTS[0], "chosen": pairs[PROMPTS[0]]["b"], "rejected": pairs[PROMPTS[0]]["a"]}]
    assert "1 preference(s) written" in capsys.readouterr().out
    # A kill in the middle of a write leaves a part of a line.
    with to.open("a") as file:
        file.write('{"prompt": "The ki')
    assert rate(f"--to={to}", said=["x", "", "skip", "A", "quit"]) == 1
    out = capsys.readouterr().out
    assert PROMPTS[0] not in out, "a prompt that was rated is asked again"
    assert "1 preference(s) written, 1 skipped" in out
    found = lines(to)
    assert [each["prompt"] for each in found] == [PROMPTS[0], PROMPTS[2]]
    assert found[1]["chosen"] == pairs[PROMPTS[2]]["a"], "another start gives other answers"
    assert rate(f"--to={to}", said=["s", EOFError()]) == 0


def test_ratings_choose_between_sampled_answers(rate, tmp_path):
    rate(f"--answers={tmp_path / 'all.jsonl'}")
    pairs = lines(tmp_path / "all.jsonl")
    ratings, to = tmp_path / "ratings.jsonl", tmp_path / "to.jsonl"
    choices = dict(zip(PROMPTS, ("b", "skip", "a"), strict=False))
    ratings.write_text("".join(json.dumps({"prompt": p, "choice": c}) + "\n" for p, c in choices.items()))
    assert rate(f"--ratings={ratings}", f"--to={to}") == 2
    assert lines(to) == [
        {"prompt": pairs[0]["prompt"], "chosen": pairs[0]["b"], "rejected": pairs[0]["a"]},
        {"prompt": pairs[2]["prompt"], "chosen": pairs[2]["a"], "rejected": pairs[2]["b"]},
    ]
    assert rate(f"--ratings={ratings}", f"--to={to}") == 0, "they are written twice"


def test_ratings_with_answers_need_no_model(tmp_path, capsys):
    ratings, to = tmp_path / "ratings.jsonl", tmp_path / "to.jsonl"
    made = [RATED, RATED | {"prompt": "q", "choice": "b"}, RATED | {"prompt": "r", "a": "y"},
            RATED | {"prompt": "s", "b": " "}, RATED | {"prompt": "t", "choice": "skip"},
            RATED | {"prompt": [{"role": "user", "content": "u"}]}]  # fmt: skip
    ratings.write_text("".join(json.dumps(each) + "\n" for each in made))
    assert run(["rate", f"--ratings={ratings}", f"--to={to}"]) == 3
    assert [(each["prompt"], each["chosen"]) for each in lines(to)] == [
        ("p", "x"), ("q", "y"), ([{"role": "user", "content": "u"}], "x")]  # fmt: skip
    assert "3 preference(s) written, 1 skipped, 2 with equal or empty answers" in capsys.readouterr().out
    assert run(["rate", f"--ratings={ratings}", f"--to={to}"]) == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"prompt": "p", "a": "x", "b": "y"}, "ratings.jsonl:2: no 'choice'"),
        (RATED | {"choice": "c"}, "ratings.jsonl:2: 'choice' is 'c'"),
        (RATED | {"choice": 1}, "ratings.jsonl:2: 'choice' is '1', not a string"),
        ({"prompt": "q", "a": "x", "choice": "a"}, "ratings.jsonl:2: has one of 'a' and 'b'"),
        (RATED, "ratings.jsonl:2: rates the same prompt as .*ratings.jsonl:1"),
        ({"a": "x", "b": "y", "choice": "a"}, "ratings.jsonl:2: "),
        ([1], "ratings.jsonl:2: a JSON list, not an object"),
    ],
)
def test_ratings_that_cannot_be_are_refused_with_file_and_line(tmp_path, line, said):
    ratings = tmp_path / "ratings.jsonl"
    ratings.write_text(json.dumps(RATED) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(DataError, match=said):
        run(["rate", f"--ratings={ratings}", f"--to={tmp_path / 'to.jsonl'}"])
    assert not (tmp_path / "to.jsonl").exists()


def test_a_rating_of_an_unknown_prompt_is_refused(rate, tmp_path):
    ratings = tmp_path / "ratings.jsonl"
    ratings.write_text(json.dumps({"prompt": "Other", "choice": "a"}) + "\n")
    with pytest.raises(DataError, match=r"ratings.jsonl:1: its prompt is not in --prompts="):
        rate(f"--ratings={ratings}", f"--to={tmp_path / 'to.jsonl'}")


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"prompt": "p", "chosen": "x"}, "to.jsonl:1: no 'rejected'"),
        ({"prompt": "p", "chosen": "x", "rejected": "x"}, "to.jsonl:1: 'chosen' and 'rejected' are equal"),
    ],
)
def test_a_file_of_other_records_is_not_appended_to(rate, tmp_path, kept, said):
    to = tmp_path / "to.jsonl"
    to.write_text(json.dumps(kept) + "\n")
    with pytest.raises(DataError, match=said):
        rate(f"--to={to}", said=["a"])


def test_a_whole_last_line_without_a_line_feed_is_kept(rate, tmp_path):
    to = tmp_path / "to.jsonl"
    to.write_text(json.dumps({"prompt": PROMPTS[0], "chosen": "x", "rejected": "y"}))
    assert rate(f"--to={to}", said=["a", "quit"]) == 1
    assert [each["prompt"] for each in lines(to)] == [*PROMPTS[:2]]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "needs one of --to=FILE"),
        (("--to=a.jsonl", "--answers=b.jsonl"), "needs one of --to=FILE"),
        (("--answers=a.jsonl", "--ratings=b.jsonl"), "answers are sampled or rated"),
        (("--to=a.jsonl",), "asks at a terminal, and there is none"),
        (("--to=a.txt",), "--to=a.txt: preferences are JSONL"),
        (("--to=nowhere/a.jsonl",), "is in a folder that does not exist"),
        (("--answers=a.jsonl", "--temperature=0"), "--temperature=0: both answers would be equal"),
        (("--to=a.jsonl", "--ratings=missing.jsonl"), "--ratings=missing.jsonl: there is no such file"),
    ],
)
def test_wrong_flags_are_told_before_a_model_is_loaded(rate, tmp_path, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmjax.commands.rate.opened", lambda *_: pytest.fail("the model is loaded"))
    with pytest.raises((FlagError, DataError), match=said):
        rate(*flags)
    assert os.listdir(tmp_path) == ["prompts.txt"]


def test_answers_stand_side_by_side():
    found = shown(Pair("say it", "one two three four", "x\ny"), 23)
    assert found.splitlines() == ["", "say it", "-- a       | -- b", "one two    | x", "three four | y"]
    assert all(len(line) <= 40 for line in shown(Pair("p" * 99, "a" * 99, "b" * 99), 40).splitlines())


def test_keys_may_be_words():
    keys = iter(["", "what", "SK"])
    assert ask(lambda _: next(keys)) == "skip"


def test_sample_rate_and_train_are_three_commands(tiny, tmp_path):
    base = lmjax.train(tiny("next_token", steps=2), tmp_path / "base", progress=False)
    (tmp_path / "prompts.txt").write_text(
        "".join(f"{word}\n" for word in ("The old", "A king", "Never", "The tree") * 2)
    )
    pairs, rated, to = (tmp_path / f"{name}.jsonl" for name in ("pairs", "rated", "to"))
    run(
        [
            "rate",
            f"--workdir={base}",
            f"--prompts={tmp_path / 'prompts.txt'}",
            f"--answers={pairs}",
            "--max_new_tokens=8",
        ]
    )
    rated.write_text(
        "".join(json.dumps(p | {"choice": "a" if len(p["a"]) < len(p["b"]) else "b"}) + "\n" for p in lines(pairs))
    )
    written = run(["rate", f"--ratings={rated}", f"--to={to}"])
    assert written == 4
    (tmp_path / "dev.jsonl").write_text(to.read_text())
    run(["train", f"--init_from={base}", "--objective=dpo", f"--data={to}", f"--eval_data=dev={tmp_path / 'dev.jsonl'}",
         f"--workdir={tmp_path / 'better'}", "--steps=1", "--config.task.length=64", "--config.batch_size=4",
         "--noprogress"])  # fmt: skip
    assert lmjax.load_model(tmp_path / "better").prompts == lmjax.load_model(base).prompts
