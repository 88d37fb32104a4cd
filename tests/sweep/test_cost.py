"""What runs spend, counted before they are trained, and arms that spend the same."""

import pytest

from lmjax.errors import FlagError
from lmjax.runs.build import build
from lmjax.sweep import cost as module
from lmjax.sweep.cost import Cost, Costs, Span, cost_key, matched_steps
from lmjax.training.step import count_tokens

STAGED = Cost(30, 7, (Span(0, 10, 2.0, 1.0, 5.0), Span(10, None, 4.0, 3.0, 9.0)))


def test_stages_are_summed_each_with_its_own_steps():
    assert STAGED.total("tokens") == 10 * 2 + 20 * 4
    assert STAGED.total("flops", 10) == 50
    assert STAGED.total("targets", 11) == 13
    assert STAGED.total("steps", 11) == 11


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 500])
def test_the_steps_for_an_amount_are_those_that_spend_it(steps):
    for unit in ("steps", "tokens", "targets", "flops"):
        assert STAGED.steps_for(unit, STAGED.total(unit, steps)) == steps
        assert STAGED.steps_for(unit, STAGED.total(unit, steps) + 0.1) == steps
    assert STAGED.steps_for("tokens", 0.01) == 1


def test_tokens_and_flops_are_those_of_the_batches(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 16)
    config = tiny(steps=5)
    run = build(config, tmp_path)
    stage = run.stages[-1]
    found = Costs()(config)
    assert found.steps == 5
    assert found.spans[0].flops == run.flops_per_step(stage)
    rows = [stage.example(i)[-1] for i in range(16)]
    assert found.spans[0].tokens == sum(int(count_tokens(row)) for row in rows) / 2, "16 rows are two batches"
    assert found.spans[0].targets == sum(float(row["weights"].sum()) for row in rows) / 2


def test_masked_words_are_the_targets_of_an_encoder(tiny):
    costs = Costs()
    one, other = costs(tiny("next_token")), costs(tiny("mlm"))
    assert one.total("targets", 10) > 0.7 * one.total("tokens", 10)
    assert other.total("targets", 10) == pytest.approx(0.15 * other.total("tokens", 10), rel=0.2)


def test_runs_that_differ_in_numbers_and_seeds_are_counted_once(tiny, monkeypatch):
    built = []
    monkeypatch.setattr(module, "build", lambda config, workdir: built.append(config) or build(config, workdir))
    costs = Costs()
    for fields in ({}, {"seed": 3}, {"optimizer.learning_rate": 0.1}, {"model.dropout.mlp": 0.2}, {"steps": 7}):
        costs(tiny(**fields))
    assert len(built) == 1
    assert costs(tiny(steps=7)).steps == 7
    for fields in ({"model.num_layers": 3}, {"batch_size": 16}, {"epochs": 2.0}, {"task.length": 40}):
        assert cost_key(tiny(**fields)) != cost_key(tiny())


def test_epochs_give_the_steps_that_their_rows_make(tiny, tmp_path):
    config = tiny(epochs=2.0)
    assert Costs()(config).steps == build(config, tmp_path).config.steps


def test_every_run_spends_what_the_first_one_spends(tiny):
    configs, costs = [tiny(steps=40), tiny(**{"model.num_layers": 6}), tiny("mlm", seed=1)], Costs()
    for unit in ("steps", "tokens", "targets", "flops"):
        steps = matched_steps(configs, unit, costs)
        assert steps[0] == 40
        amounts = [costs(c).total(unit, n) for c, n in zip(configs, steps, strict=True)]
        for config, amount in zip(configs, amounts, strict=True):
            assert abs(amount - amounts[0]) <= costs(config).total(unit, 1) / 2


def test_time_is_matched_by_the_clock(tiny):
    assert matched_steps([tiny(minutes=1.0), tiny(minutes=1.0, seed=1)], "seconds", Costs()) == [None, None]
    for configs, unit in (([tiny(), tiny(seed=1)], "seconds"), ([tiny(minutes=1.0)] * 2, "flops")):
        with pytest.raises(FlagError, match=f"--match={unit}"):
            matched_steps(configs, unit, Costs())
    with pytest.raises(FlagError, match="must end after the same time"):
        matched_steps([tiny(minutes=1.0), tiny(minutes=2.0)], "seconds", Costs())
