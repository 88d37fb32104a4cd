"""Stages: their batch sizes and lengths, that no stage repeats another's order, and that they resume bit for bit."""

import json

import numpy as np
import pydantic
import pytest

from lmjax.commands.train import train
from lmjax.errors import FlagError
from lmjax.runs.build import build
from lmjax.training.metrics import read_metrics
from lmjax.training.stages import StagesConfig
from tests.workdirs import bits, losses, resumed_from

STAGES = {
    "stages__until": "3,6", "stages__batch_size": "8,16", "stages__length": "16,32", "batch_size": "16",
    "steps": "8", "evaluation__every": 0, "checkpoint__every": 2, "checkpoint__keep": 10,
}  # fmt: skip


def test_every_stage_has_its_span_and_the_last_is_the_runs_own():
    config = StagesConfig(until=(100, 300), length=(32, 64))
    assert config.spans(16, 128) == [(0, 100, 16, 32), (100, 300, 16, 64), (300, None, 16, 128)]
    assert StagesConfig().spans(16, 128) == [(0, None, 16, 128)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"until": (3, 3)}, "must rise"), ({"until": (3,), "length": (8, 16)}, "an entry for each of until")],
)
def test_stages_that_do_not_fit_are_refused(fields, words):
    with pytest.raises(pydantic.ValidationError, match=words):
        StagesConfig(**fields)


def test_a_stage_must_fit_the_model_the_microbatches_and_the_mesh(tiny, tmp_path, every_device):
    with pytest.raises(FlagError, match="rows of 128 tokens do not fit"):
        tiny(stages__until="3", stages__length="128")
    with pytest.raises(FlagError, match="batch_size=9"):
        tiny(stages__until="3", stages__batch_size="9", accumulation=2)
    with pytest.raises(FlagError, match=r"batch_size=12.*multiple of 8"):
        build(tiny(stages__until="3", stages__batch_size="12"), tmp_path)


@pytest.fixture(scope="module")
def config(tiny):
    return tiny(**STAGES)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    return train(config, tmp_path_factory.mktemp("stages") / "run", progress=False)


def test_no_stage_repeats_anothers_order(config, whole):
    stages = build(config, whole).stages
    assert [s.local_batch()["tokens"].shape for s in stages] == [(8, 16), (16, 32), (16, 32)]
    assert len({s.seed for s in stages}) == 3
    assert stages[-1].seed == config.seed


def test_tokens_and_speed_are_those_of_the_stage(config, whole):
    """Rows are nearly full, so a step reads nearly batch size x length tokens."""
    steps, seen = read_metrics(whole, "train/tokens_seen")
    assert steps == list(range(1, 9))
    read = np.diff([0, *seen])
    for span, size in ((slice(0, 3), 8 * 16), (slice(3, 8), 16 * 32)):
        assert (read[span] <= size).all()
        assert (read[span] > 0.6 * size).all()
    flops, rates = (read_metrics(whole, f"train/{n}_per_second")[1] for n in ("model_flops", "steps"))
    each = np.array(flops) / np.array(rates)
    np.testing.assert_allclose(each, [each[0]] * 3 + [each[-1]] * 5, rtol=1e-6)
    assert each[-1] > 3.9 * each[0]


def test_compiling_a_stage_is_compilation(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    seconds = {line["step"]: line["time/compilation"] for line in lines if "time/compilation" in line}
    assert seconds[4] > seconds[2] + 0.01
    assert seconds[6] == seconds[5]


@pytest.mark.parametrize("step", [2, 4])
def test_a_run_resumed_within_a_stage_goes_on_bit_for_bit(config, whole, tmp_path, step):
    """One run resumes before two changes of stage, the other in the middle of a stage."""
    workdir = train(config, resumed_from(whole, step, tmp_path / "run"), progress=False)
    assert bits(workdir, 8) == bits(whole, 8)
    assert losses(workdir) == losses(whole)
