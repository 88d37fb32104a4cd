"""`lmjax compare` gives the statistics of runs that exist already, and scores what is not scored yet."""

import pathlib

import pytest

from lmjax import cli
from lmjax.commands.train import train
from lmjax.errors import FlagError
from lmjax.runs.documents import document_files


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    small = {"model__num_layers": 1, "steps": 3, "evaluation__every": 1, "optimizer__warmup_steps": 0}
    rates = {"a": 1e-4, "b": 0.05}
    for name, rate in rates.items():
        train(tiny("next_token", optimizer__learning_rate=rate, **small), folder / name, progress=False)
    return [str(folder / name) for name in rates]


def test_runs_are_compared_on_their_documents(runs, tmp_path, capsys):
    unscored = cli.run(["compare", *runs, "--nodocuments"])
    assert (unscored.documents, document_files(pathlib.Path(runs[0]))) == (0, {})
    capsys.readouterr()
    found = cli.run(["compare", runs[0], f"--report={tmp_path / 'out'}", runs[1]])
    said = capsys.readouterr().out
    assert [arm.label for arm in found.arms] == ["learning_rate=0.0001", "learning_rate=0.05"]
    assert found.documents > 5
    assert found.pairs[0].value > 0
    assert "learning_rate=0.0001 less learning_rate=0.05" in said
    assert "of these runs" in said, "a single seed of each is no evidence for the learning rate"
    pages = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    charts = {name for name in pages if name.endswith(".svg")}
    assert pages.keys() - charts == {"report.csv", "report.html", "report.md"}
    assert "report-learning-curves.svg" in charts
    assert pages["report.html"].count("<polyline") == 2


def test_what_is_no_run_is_refused(runs, tmp_path):
    for argv, message in (
        ([], "needs the workdirs of runs"),
        ([*runs, runs[0]], "is given twice"),
        ([str(tmp_path)], "is no workdir of a run that was trained"),
        ([f"{tmp_path}/none"], "there is no such folder"),
        ([*runs, "--metric=accuracy"], "--metric=accuracy: not all runs have it; they share eval/heldout/"),
    ):
        with pytest.raises(FlagError) as error:
            cli.run(["compare", *argv])
        assert message in str(error.value)
