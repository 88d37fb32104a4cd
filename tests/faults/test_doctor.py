"""`lmjax doctor` says what is wrong with a workdir, and repairs what it can without losing anything."""

import pytest

from lmjax import cli
from lmjax.commands.train import train
from lmjax.errors import CheckpointError, FlagError
from lmjax.runs.workdir import State, lock_workdir, read_state
from lmjax.training.checkpoint import saved_steps
from tests.faults.campaign_flips import flip


def test_a_run_is_verified_and_repaired(tiny, tmp_path, capsys):
    config = tiny(steps=4, checkpoint__every=2, evaluation__every=2)
    workdir = train(config, tmp_path / "run", progress=False)
    cli.run(["doctor", f"--workdir={workdir}"])
    assert "a run resumes from step 4" in capsys.readouterr().out

    flip(workdir / "checkpoints" / "4" / "state" / "_METADATA", 99)
    (workdir / "checkpoints" / "6.partial").mkdir()
    (workdir / "state.json").write_text("{")
    before = sorted(workdir.rglob("*"))
    with pytest.raises(CheckpointError, match=r"wrong; --repair removes"):
        cli.run(["doctor", f"--workdir={workdir}"])
    told = capsys.readouterr().out
    for text in ("WRONG step 4: state/_METADATA: its bytes", "a run resumes from step 2", "6.partial", "state.json"):
        assert text in told
    assert sorted(workdir.rglob("*")) == before, "it changed something without --repair"

    with lock_workdir(workdir), pytest.raises(FlagError, match="another process"):
        cli.run(["doctor", f"--workdir={workdir}", "--repair"])
    cli.run(["doctor", f"--workdir={workdir}", "--repair"])
    assert saved_steps(workdir) == [2]
    assert (workdir / "checkpoints" / "4.damaged").is_dir()
    assert read_state(workdir) == State("training", 2)
    train(config, workdir, progress=False)
    assert saved_steps(workdir) == [2, 4]
