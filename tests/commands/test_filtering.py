"""`lmjax generate --filter`: what a rule finds is refused, written again or marked, and counted."""

import io
import json
import re
import sys

import pytest

from lmjax.cli import run
from lmjax.commands import filtering
from lmjax.commands.filtering import Filter
from lmjax.commands.repl import Repl
from lmjax.errors import DataError, FlagError
from lmjax.inference.generate.generate import GenerateConfig, generate
from lmjax.runs.trained import load_model
from tests.analysis.test_inside import classifier

PROMPTS = ("The old king", "A young queen", "The river goes", "She sees", "never")
SAMPLED = ("--temperature=1", "--max_new_tokens=8", "--seed=3")


@pytest.fixture
def asked(folder, tmp_path, capsys):
    """Returns a function from flags to the records of `--output`, the texts without a filter, and the last line."""
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    config = GenerateConfig(max_new_tokens=8, seed=3, sampling={"temperature": 1.0})
    plain = [each[0].text for each in generate(load_model(folder), list(PROMPTS), config)]

    def ask(*flags, number=0):
        output = tmp_path / f"out{number}.jsonl"
        run(["generate", f"--model={folder}", f"--prompts={path}", f"--output={output}", *SAMPLED, *flags])
        return list(map(json.loads, output.read_text().splitlines())), plain, capsys.readouterr().err.splitlines()[-1]

    return ask


def pattern_of(texts, tmp_path):
    """Returns a file of a regular expression that finds the first and the third text alone, and what it finds."""
    path = tmp_path / "patterns.txt"
    path.write_text("\n".join(f"^{re.escape(texts[i])}$" for i in (0, 2)) + "\n")
    assert [i for i, text in enumerate(texts) if text in (texts[0], texts[2])] == [0, 2], "the texts of this test agree"
    return f"--filter_patterns={path}"


def test_texts_are_refused_marked_or_written_again(asked, tmp_path):
    _, plain, _ = asked()
    flag, why = pattern_of(plain, tmp_path), "with one of the patterns"
    refused, _, line = asked("--filter=refuse", flag, number=1)
    assert [x["text"] for x in refused] == ["", plain[1], "", *plain[3:]]
    assert [x["filter"] for x in refused] == [why, None, why, None, None]
    assert not refused[0]["ids"]
    assert line == f"filter: of 5 texts, found 2 {why}; 2 refused"
    marked, _, line = asked("--filter=mark", flag, number=2)
    assert [(x["text"], x["filter"]) for x in marked] == [*zip(plain, [why, None, why, None, None], strict=True)]
    assert line.endswith("2 marked")
    again, _, line = asked("--filter=resample", flag, number=3)
    texts = [x["text"] for x in again]
    assert [texts[i] for i in (1, 3, 4)] == [plain[i] for i in (1, 3, 4)], "another text was written again"
    assert not {texts[0], texts[2]} & {plain[0], plain[2]}
    assert [x["filter"] for x in again] == [None] * 5
    assert line.endswith("2 written again, 0 refused")


def test_a_text_that_is_found_each_time_is_refused_after_the_tries(asked, tmp_path, monkeypatch):
    path, calls = tmp_path / "all.txt", []
    path.write_text("(?s).*\n")
    real = filtering.generate
    monkeypatch.setattr(filtering, "generate", lambda *a, **k: calls.append(k.get("seeds")) or real(*a, **k))
    found, _, line = asked("--filter=resample", f"--filter_patterns={path}", "--filter_tries=2", number=4)
    assert [x["text"] for x in found] == [""] * 5
    assert line.endswith("0 written again, 5 refused")
    assert calls == [None, [8, 9, 10, 11, 12], [13, 14, 15, 16, 17]], "a seed is used twice"


def test_a_classifier_finds_texts_and_an_answer_of_a_conversation_is_checked(folder, monkeypatch, capsys):
    judge, loaded = classifier(), load_model(folder)
    monkeypatch.setattr(filtering, "load_model", lambda place: judge)
    from lmjax.audit.raters import probabilities

    config = GenerateConfig(max_new_tokens=5)
    text = generate(loaded, ["The old"], config)[0][0].text
    rate = float(probabilities(judge, [text])["dull"][0])
    flags = ["generate", f"--model={folder}", "--max_new_tokens=5", "--filter_model=judge", "--filter_label=dull"]
    for threshold, refused in ((rate * 0.99, True), (min(1, rate * 1.01), False)):
        given = [*flags, "--filter=refuse", f"--filter_threshold={threshold}"]
        ((found,),) = run([*given, "--prompt=The old"])
        shown = "[refused: that are 'dull' to the classifier]" if refused else text
        assert shown in capsys.readouterr().out
        assert found.text == ("" if refused else text)
        monkeypatch.setattr(Repl, "run", lambda self: self._answer("The old"))
        monkeypatch.setattr(sys, "stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})(""))
        run(given)
        assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--filter=refuse"], FlagError, "--filter=refuse: say what finds a text: --filter_words"),
        (["--filter_words=w"], FlagError, "--filter_words: say what is done .* --filter=refuse"),
        (["--filter=mark", "--filter_words=gone.txt"], DataError, "--filter_words: .*gone.txt"),
        (["--filter=mark", "--filter_words=w", "--filter_label=x"], FlagError, "is a label of --filter_model"),
        (
            ["--filter=mark", "--filter_model=judge", "--filter_label=x"],
            FlagError,
            "x: judge: has the labels dull, fine",
        ),
        (["--filter=resample", "--filter_words=w"], FlagError, "the likeliest text is the same each time"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_read(folder, tmp_path, monkeypatch, flags, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").write_text("bad\n")
    monkeypatch.setattr(filtering, "load_model", lambda place: classifier())
    monkeypatch.setattr("lmjax.commands.generate.opened", lambda *_: pytest.fail("the model is read"))
    with pytest.raises(error, match=message):
        run(["generate", f"--model={folder}", "--prompt=a", *flags])


def test_an_encoder_that_fills_masks_has_no_filter():
    Filter("mark", (), 1).check(GenerateConfig())
    with pytest.raises(FlagError, match="--filter=resample"):
        Filter("resample", (), 1).check(GenerateConfig(beams={"beams": 2}))
