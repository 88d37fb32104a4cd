"""lmjax data tells what stands in data, and names what it cannot read."""

import pytest

from lmjax import cli
from lmjax.errors import DataError, FlagError
from tests.commands.test_explain import check


def test_a_report_of_data_and_of_an_evaluation_set(corpus, tmp_path, capsys):
    (tmp_path / "eval.txt").write_text(corpus.read_text().split("\n\n")[0] + "\n\nentirely other words\n")
    path = tmp_path / "data.html"
    given = ["data", f"--data={corpus}", f"--against={tmp_path}/eval.txt", "--ngram=5"]
    sections = cli.run([*given, f"--output={path}"])
    assert [s.title for s in sections] == ["Size", "Duplicates", "Personal data", "Contamination"]
    assert sections[-1].findings[0].value == 50
    assert "contaminated, %" in capsys.readouterr().out
    check(path.read_text().replace('xmlns="http', ""))
    pytest.importorskip("py3langid")
    assert cli.run([*given, "--languages"])[-2].title == "Languages"
    cli.run([*given, f"--output={tmp_path}/data.md"])
    assert "## Duplicates" in (tmp_path / "data.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs --data=FILE"),
        (["--data={tmp}/no.txt"], "--data: no file matches"),
        (["--data=stdlib", "--against={tmp}/no.txt"], "--against: no file matches"),
        (["--data=stdlib", "--held_out=nan"], "--held_out=nan: give a number"),
        (["--data=stdlib", "--output={tmp}/a.txt"], "name a file that ends in .html or .md"),
    ],
)
def test_what_does_not_fit_is_refused(flags, message, tmp_path):
    with pytest.raises((FlagError, DataError), match=message):
        cli.run(["data", *(flag.format(tmp=tmp_path) for flag in flags)])
