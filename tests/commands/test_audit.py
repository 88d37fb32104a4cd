"""lmjax audit writes one page that loads nothing, or Markdown, with every number, file and the command."""

import json
import re

import pytest

from lmjax import cli
from lmjax.audit.lists import OWN
from lmjax.errors import DataError, FlagError
from tests.commands.test_explain import check


@pytest.fixture
def crows(tmp_path):
    path = tmp_path / "crows.csv"
    path.write_text("sent_more,sent_less,bias_type\nThe king goes,The queen goes,gender\nA queen,A king,gender\n")
    return path


def test_a_page_and_markdown_hold_the_same_numbers(folder, crows, tmp_path, capsys):
    given = ["audit", f"--model={folder}", f"--crows_pairs={crows}"]
    (section,) = cli.run([*given, f"--output={tmp_path}/audit.html"])
    out = capsys.readouterr().out
    text = (tmp_path / "audit.html").read_text()
    check(text)
    cli.run([*given, f"--output={tmp_path}/audit.md", f"--against={folder}"])
    written = (tmp_path / "audit.md").read_text()
    value = f"{section.findings[0].value:.4g}"
    assert all(value in each for each in (out, text, written))
    assert all(section.files[0][1] in each for each in (text, written))
    assert re.search(r"^\| stereotype preferred, % .*\+0 \(0 to 0; p 1\) \| 2 \|$", written, re.MULTILINE)
    with pytest.raises(FlagError, match="never overwritten"):
        cli.run([*given, f"--output={tmp_path}/audit.md"])


def test_what_is_written_is_counted_and_masked(folder, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("The old\nA queen\n")
    (tmp_path / "patterns.txt").write_text("[aeiou]\n")
    given = ["audit", f"--model={folder}", f"--prompts={tmp_path}/prompts.txt", "--samples=2", "--max_new_tokens=3"]
    (section,) = cli.run([*given, f"--patterns={tmp_path}/patterns.txt", f"--output={tmp_path}/a.md"])
    assert [f.name for f in section.findings] == [f"patterns: {x}" for x in ("expected maximum", "probability", "mean")]
    assert "patterns: probability" in capsys.readouterr().out
    with pytest.raises(FlagError, match="say what rates the texts"):
        cli.run([*given, "--output=-"])


def test_the_templates_are_written_to_be_edited(folder, tmp_path):
    cli.run(["audit", f"--templates_to={tmp_path}/own.json"])
    assert json.loads((tmp_path / "own.json").read_text()) == OWN
    with pytest.raises(FlagError, match="never overwritten"):
        cli.run(["audit", f"--templates_to={tmp_path}/own.json"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs one of --crows_pairs, --winobias"),
        (["--words=w.txt", "--bbq=x"], "--words: is of what the model writes"),
        (["--crows_pairs={tmp}/no.csv"], "--crows_pairs: no file matches"),
        (["--stereoset={crows}"], r"--stereoset=.*crows\.csv: not JSON"),
        (["--bbq={crows}"], r"crows\.csv:2: no 'context'"),
        (["--winobias={crows}"], "names no file that begins with pro_"),
        (["--rater_label=x", "--bbq=x"], "--rater_label=x: is a label of --rater"),
        (["--memorised", "--prompts=x"], "--memorised: needs the training data"),
        (["--bbq=x", "--top_p=nan"], "--top_p=nan: give a number"),
        (["--bbq=x", "--output={tmp}/a.txt"], "name a file that ends in .html or .md"),
    ],
)
def test_what_does_not_fit_is_refused(flags, message, folder, crows, tmp_path):
    given = [flag.format(tmp=tmp_path, crows=crows) for flag in flags]
    output = [] if "--output" in " ".join(given) else ["--output=-"]
    with pytest.raises((FlagError, DataError), match=message):
        cli.run(["audit", f"--model={folder}", *given, *output])
