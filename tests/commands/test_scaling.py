"""`lmjax scaling` fits the runs of a sweep, and a ladder has models of one shape."""

import json

import numpy as np
import pytest

from lmjax import cli
from lmjax.errors import FlagError
from lmjax.evaluation.scaling import Law
from lmjax.sweep.ladder import ladder
from lmjax.sweep.ledger import Ledger
from lmjax.sweep.outcome import Outcome
from lmjax.sweep.targets import name_targets

TRUE = Law(1.5, 30.0, 200.0, 0.4, 0.35)


def test_a_ladder_has_models_of_one_shape():
    points = [dict(point) for point in ladder([32, 64, 128], [100, 400])]
    assert len(points) == 6
    assert points[-1] == {
        "model.embed_dim": 128,
        "model.num_layers": 4,
        "model.num_heads": 4,
        "model.mlp_dim": 512,
        "steps": 400,
        "optimizer.schedule": "wsd",
        "optimizer.wsd.cooldown": 0.2,
    }
    with pytest.raises(FlagError, match="width 40 is no multiple of head_dim=32"):
        ladder([32, 40], [100])


@pytest.fixture
def sweep(tiny, tmp_path):
    """A sweep whose losses are those of a known law, as its launcher leaves it."""
    points = [dict(point) for point in ladder([32, 64, 128, 256], [10, 40, 160])]
    configs = [
        tiny("next_token", **{key.replace(".", "__"): str(value) for key, value in point.items()}, model__vocab_size=64)
        for point in points
    ]
    targets = name_targets(points, configs, [()] * len(points))
    ledger = Ledger(tmp_path / "ladder")
    ledger.write({}, {"metric": None}, targets)
    from lmjax.model.language_model import abstract_params
    from lmjax.model.parameters import count_parameters

    for target in targets:
        workdir = ledger.workdir(target)
        workdir.mkdir(parents=True)
        (workdir / "config.json").write_text(target.config.to_json())
        tokens = 1000 * target.config.steps
        size = count_parameters(abstract_params(target.config.model, ()))
        metrics = {"eval/heldout/loss": float(TRUE.loss(size, tokens))}
        (workdir / "metrics.jsonl").write_text(json.dumps({"step": target.config.steps} | metrics) + "\n")
        ended = Outcome(workdir, "done", target.config.steps, metrics, tokens, 1e9, 1.0)
        ledger.append(target, ended, group="1", commit="abc")
    return ledger.directory


def test_the_law_of_a_sweep_is_found(sweep, capsys):
    found = cli.run(["scaling", f"--sweep={sweep}", "--flops=1e15"])
    assert found.law == pytest.approx(TRUE, rel=1e-3)
    said = capsys.readouterr().out
    assert "alpha" in said
    n, _ = TRUE.allocation(1e15)
    assert f"{n:.3g}" in said
    page = (sweep / "scaling.html").read_text()
    assert (page.count("<polyline"), page.count("<circle")) == (3, 12)
    assert np.isfinite(found.error)
    for argv, message in (
        ([f"--sweep={sweep}", "--flops=many"], "--flops=many: give numbers"),
        ([], "--sweep: name the folder"),
    ):
        with pytest.raises(FlagError) as error:
            cli.run(["scaling", *argv])
        assert message in str(error.value)
