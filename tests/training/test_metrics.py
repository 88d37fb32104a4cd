"""What is written down: every step once, the same names everywhere."""

import json

import pytest

from lmjax.training.metrics import LoggingConfig, MetricsWriter, Timers, read_metrics


def steps(path):
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_writes_every_step_once(tmp_path):
    config = LoggingConfig(tensorboard=False)
    with MetricsWriter(tmp_path, config, 0) as writer:
        for step in range(1, 6):
            writer.write(step, {"train/loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')  # as a kill leaves it
    with MetricsWriter(tmp_path, config, 3) as writer:
        assert steps(tmp_path) == [1, 2, 3]
        writer.write(4, {"train/loss": 4.0})
    assert read_metrics(tmp_path, "train/loss") == ([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0])


def test_tensorboard_gets_the_same_names(tmp_path):
    with MetricsWriter(tmp_path, LoggingConfig(), 0) as writer:
        writer.write(1, {"train/loss": 2.5, "eval/heldout/loss": 3.5})
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"train/loss" in events
    assert b"eval/heldout/loss" in events


def test_timers_add_up_by_purpose_and_survive_errors():
    timers = Timers()
    with timers.time("input"):
        pass
    with pytest.raises(KeyError), timers.time("evaluation"):
        raise KeyError
    assert timers.seconds["input"] > 0
    assert timers.seconds["evaluation"] > 0
    assert timers.seconds["checkpoint"] == 0
