"""Runs that end early, and that all parts of the state survive an interruption."""

import json

import pytest

from lmjax.commands.train import train
from lmjax.errors import PreemptedError
from lmjax.training.metrics import read_metrics
from lmjax.training.preemption import StopRequest
from tests.workdirs import bits, losses, resumed_from, untimed_lines

pytestmark = pytest.mark.long


def test_a_run_stops_early_says_so_and_stays_stopped(tiny, tmp_path, capsys, caplog):
    config = tiny(
        steps=20, model__num_layers=1, evaluation__every=2, evaluation__patience=2, evaluation__min_delta=10,
        checkpoint__every=3,
    )  # fmt: skip
    workdir = train(config, tmp_path / "run", progress=False)
    # The tests' short runs end before their warm-up does.
    assert "warmup_steps=40 is no shorter than the run of 20 steps: the learning rate rises to 0.002" in caplog.text
    assert "stopped at step 4: eval/heldout/loss has not fallen below" in capsys.readouterr().out
    assert read_metrics(workdir, "eval/heldout/loss")[0] == [0, 2, 4]
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"3", "4"}
    before = bits(workdir, 4), losses(workdir)
    train(config, workdir, progress=False)
    assert (bits(workdir, 4), losses(workdir)) == before
    # Resumed after step 3, it makes one step, evaluates as before, and stops again.
    again = train(config, resumed_from(workdir, 3, tmp_path / "again"), progress=False)
    assert (bits(again, 4), losses(again)) == before


@pytest.mark.usefixtures("samples")
def test_a_run_that_is_stopped_at_every_step_is_the_whole_run(tiny, tmp_path, capsys, monkeypatch):
    """Also at the last step, and where an evaluation is due, which is then made after the run resumes."""
    config = tiny(steps=2, model__num_layers=1, evaluation__every=1, checkpoint__every=2, logging__tensorboard="true")
    whole = train(config, tmp_path / "whole", progress=False)
    report = capsys.readouterr().out
    events = b"".join(path.read_bytes() for path in (whole / "tensorboard").iterdir())
    for tag in (b"held-out/text_summary", b"sample/text_summary", b"_hparams_/session_start_info", b"train/loss"):
        assert tag in events
    for step in (1, 2):
        with monkeypatch.context() as asked:
            asked.setattr(StopRequest, "stop_at", lambda _, number, step=step: number == step)
            with pytest.raises(PreemptedError, match=f"step {step} of 2"):
                train(config, tmp_path / "run", progress=False)
    workdir = train(config, tmp_path / "run", progress=False)
    assert capsys.readouterr().out.replace(str(workdir), str(whole)) == report
    assert untimed_lines(workdir) == untimed_lines(whole)
    assert bits(workdir, 2) == bits(whole, 2)


@pytest.fixture(scope="module")
def config(tiny):
    """A config with all optional parts of the state: two kinds of parameters, an average, a guard, groups, bfloat16."""
    return tiny(
        "mlm,nsp", steps=6, checkpoint__every=3, checkpoint__keep=10, evaluation__every=3, optimizer__name="muon",
        optimizer__ema_decay=0.9, optimizer__spike_factor=1.5, optimizer__spike_warmup=1, optimizer__layer_decay=0.9,
        optimizer__group_patterns="table,scale", optimizer__group_factors="0.5,0", optimizer__schedule="wsd",
        model__param_dtype="bfloat16",
    )  # fmt: skip


def test_averages_guards_and_groups_go_on_bit_for_bit(config, tmp_path):
    whole = train(config, tmp_path / "whole", progress=False)
    workdir = train(config, resumed_from(whole, 3, tmp_path / "run"), progress=False)
    found = bits(workdir, 6)
    assert found == bits(whole, 6)
    assert losses(workdir) == losses(whole)
    assert any("average" in name for name in found)
    assert any("spikes" in name for name in found)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert "train/skipped_spikes" in next(line for line in lines if "train/loss" in line)
