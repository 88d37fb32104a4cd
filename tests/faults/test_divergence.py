"""A run whose batches are bad: it stops and names them, or goes back and on past them, whatever kills it meanwhile."""

import json

import numpy as np
import pytest

from lmjax.commands.train import train
from lmjax.errors import DivergedError
from lmjax.runs import fit as fit_module
from lmjax.runs.build import build
from lmjax.training.metrics import read_metrics
from lmjax.training.rollback import Rollbacks
from tests.thinned import thinned
from tests.workdirs import bits, losses

STEPS, BAD = 16, range(7, 12)


class Killed(BaseException):
    """No handler expects it, as none sees SIGKILL."""


@pytest.fixture
def config(tiny):
    return tiny("next_token", steps=STEPS, checkpoint__every=3, evaluation__every=0, max_skipped=3)


@pytest.fixture
def bad_batches(monkeypatch):
    """Makes the batches at some places of the data's order give a loss that is no number; returns those places."""
    real, bad = fit_module.batches, set(BAD)

    def broken(*args, start_step, **options):
        for place, batch in enumerate(real(*args, start_step=start_step, **options), start_step):
            if place in bad:
                batch = {k: np.full_like(x, np.nan) if x.dtype.kind == "f" else x for k, x in batch.items()}
            yield batch

    def closing(*args, **options):

        return broken(*args, **options)

    monkeypatch.setattr(fit_module, "batches", closing)
    return bad


def test_a_run_that_stops_names_the_rows(config, bad_batches, tmp_path):
    with pytest.raises(DivergedError, match=r"step 10: 3 updates in a row .* from step 8 on"):
        train(config, tmp_path / "run", progress=False)
    found = json.loads((tmp_path / "run/divergence.json").read_text())
    assert (found["first_step"], found["last_step"], found["last_good_checkpoint"]) == (8, 10, 6)
    assert [row["step"] for row in found["rows"]] == [step for step in (8, 9, 10) for _ in range(config.batch_size)]
    assert all(row["set"] == "train" and row["text"].strip() for row in found["rows"])
    (stage,) = build(config, tmp_path / "run").stages
    positions = range(BAD[0] * config.batch_size, (BAD[0] + 3) * config.batch_size)
    order = [stage.examples.mixture.row(position, stage.seed) for position in positions]
    assert [(row["epoch"], row["row"]) for row in found["rows"]] == order, "the rows are those of other batches"


def test_a_run_that_goes_back_passes_them_and_ends(config, bad_batches, tmp_path):
    config = config.model_copy(update={"on_divergence": "rollback"})
    workdir = train(config, tmp_path / "run", progress=False)
    steps, values = read_metrics(workdir, "train/loss")
    assert steps == list(range(1, STEPS + 1)), "a step is missing, or stands twice"
    # From step 6 on batches 10, 11 (which are bad, too few to give up on), 12 ... are read.
    assert [step for step, loss in zip(steps, values, strict=True) if not np.isfinite(loss)] == [7, 8]
    rollbacks = Rollbacks(workdir)
    assert [tuple(r) for r in rollbacks._rollbacks] == [(6, 10)]
    assert [rollbacks.skipped(step) for step in (5, 6, 15)] == [0, 4, 4]
    skipped = read_metrics(workdir, "train/skipped_updates")[1]
    assert skipped[-1] == 2


@pytest.mark.parametrize("moment", thinned(["after it is noted", "before it is noted"], 2))
def test_a_run_killed_while_it_goes_back_is_the_same_run(config, bad_batches, tmp_path, monkeypatch, moment):
    from lmjax.runs import diverged

    config = config.model_copy(update={"on_divergence": "rollback"})
    whole = train(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        if moment == "after it is noted":
            patch.setattr(fit_module, "_open_stage", _killed_after(fit_module._open_stage))
        else:
            patch.setattr(diverged, "Rollback", _kill)
        with pytest.raises(Killed):
            train(config, tmp_path / "run", progress=False)
    again = train(config, tmp_path / "run", progress=False)
    assert bits(again, STEPS) == bits(whole, STEPS)
    assert losses(again) == losses(whole)


def _kill(*_, **__):
    raise Killed


def _killed_after(real):
    calls = []

    def open_stage(*args):
        calls.append(args)
        return real(*args) if len(calls) < 2 else _kill()

    return open_stage


def test_a_run_that_ends_on_updates_that_were_left_out_says_so(config, bad_batches, tmp_path):
    bad_batches |= set(range(14, 100))
    config = config.model_copy(update={"max_skipped": 9})
    for _ in range(2):  # nor is it whole when the same command comes again
        with pytest.raises(DivergedError, match="step 16: 2 updates in a row"):
            train(config, tmp_path / "run", progress=False)


def test_going_back_has_an_end(config, bad_batches, tmp_path, monkeypatch):
    from lmjax.runs import diverged

    monkeypatch.setattr(diverged, "MOST", 2)
    bad_batches |= set(range(7, 1000))
    with pytest.raises(DivergedError, match="has rolled back 2 times"):
        train(config.model_copy(update={"on_divergence": "rollback"}), tmp_path / "run", progress=False)


def test_the_advice_works(config, bad_batches, tmp_path):
    """Both ways that the message of a run that stopped names: the same command with a flag more, and a new run."""
    with pytest.raises(DivergedError, match=r"--on_divergence=rollback.*--init_from"):
        train(config, tmp_path / "run", progress=False)
    from lmjax.config import replace

    bad_batches.clear()
    fields = {"init_from": str(tmp_path / "run"), "tokenizer.path": str(tmp_path / "run")}
    lower = replace(config, fields | {"optimizer.learning_rate": config.optimizer.learning_rate / 2})
    train(lower, tmp_path / "new", progress=False)
    bad_batches |= set(BAD)
    train(replace(config, {"on_divergence": "rollback"}), tmp_path / "run", progress=False)
