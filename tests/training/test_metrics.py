"""Metrics on disk: every step once, and the same names in metrics.jsonl and TensorBoard."""

import errno
import json
import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from lmjax import strict_json
from lmjax.errors import SaveError
from lmjax.training.board import HyperparameterTable, write_images, write_report
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


def events(path):
    """Returns all summaries that TensorBoard would read, as (step, tag, plugin's name, plugin's content, text)."""
    found = []
    for file in sorted((path / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            for value in event.summary.value:
                plugin = value.metadata.plugin_data
                found.append(
                    (event.step, value.tag, plugin.plugin_name, plugin.content, b"".join(value.tensor.string_val))
                )
    return found


def test_hyperparameters_are_a_row_of_tensorboards_table(tmp_path):
    values = {"optimizer.learning_rate": 0.5, "steps": 8, "task.objective": ("mlm", "nsp"), "minutes": None, "a": True}
    table = HyperparameterTable(values, ["eval/heldout/loss"])
    with MetricsWriter(tmp_path, LoggingConfig(), 0, table) as writer:
        writer.write(1, {"eval/heldout/loss": 2.5})
    assert not [p for p in (tmp_path / "tensorboard").iterdir() if p.is_dir()], "the row was written as another run"
    contents = {tag: HParamsPluginData.FromString(x) for _, tag, name, x, _ in events(tmp_path) if name == "hparams"}
    start = contents["_hparams_/session_start_info"].session_start_info
    numbers = {name: x.number_value for name, x in start.hparams.items() if x.HasField("number_value")}
    assert numbers == {"optimizer.learning_rate": 0.5, "steps": 8.0}
    assert start.hparams["a"].bool_value
    texts = {name: x.string_value for name, x in start.hparams.items() if x.HasField("string_value")}
    assert texts == {"task.objective": "mlm,nsp", "minutes": "none"}
    experiment = contents["_hparams_/experiment"].experiment
    assert [m.name.tag for m in experiment.metric_infos] == ["eval/heldout/loss"]
    assert {h.name for h in experiment.hparam_infos} == set(values)


def test_the_report_is_texts_that_keep_their_columns_and_stand_once(tmp_path):
    for text in ("step  0", "a  b\n  1  2\n\nend"):
        write_report(tmp_path, 8, {"held-out": text})
    found = [(step, tag, text) for step, tag, _, _, text in events(tmp_path)]
    assert found == [(8, "held-out/text_summary", b"    a  b\n      1  2\n    \n    end")]


def test_images_are_those_of_the_last_call(tmp_path):
    for name in ("old", "new"):
        write_images(tmp_path, 3, {name: np.zeros((4, 6, 3), np.uint8)})
    written = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"new" in written
    assert b"old" not in written
    assert b"PNG" in written


def no_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_tensorboards_events_and_not_the_run(tmp_path, monkeypatch, caplog):
    with MetricsWriter(tmp_path, LoggingConfig(), 0) as writer:
        writer.write(1, {"train/loss": 1.0})
        monkeypatch.setattr(writer._board._file, "write", no_room)
        for step in range(2, 40):  # more than any queue holds
            writer.write(step, {"train/loss": 1.0, "train/b": 2.0})
    assert steps(tmp_path) == list(range(1, 40))
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "No space left on device" in caplog.text


def test_a_full_disk_for_metrics_is_a_failed_save(tmp_path, monkeypatch):
    with MetricsWriter(tmp_path, LoggingConfig(tensorboard=False), 0) as writer:
        monkeypatch.setattr(strict_json, "dumps", no_room)
        with pytest.raises(SaveError, match=r"metrics.jsonl: cannot write the metrics of step 3 \(No space"):
            writer.write(3, {"train/loss": 1.0})


def test_timers_add_up_by_purpose_and_survive_errors():
    timers = Timers()
    with timers.time("input"):
        pass
    with pytest.raises(KeyError), timers.time("evaluation"):
        raise KeyError
    assert timers.seconds["input"] > 0
    assert timers.seconds["evaluation"] > 0
    assert timers.seconds["checkpoint"] == 0


def test_what_is_written_is_json_for_every_reader(tmp_path):
    """JSON has no values for NaN and infinity, and other readers reject the three that Python writes."""
    with MetricsWriter(tmp_path, LoggingConfig(tensorboard=False), 0) as writer:
        writer.write(1, {"train/loss": math.nan, "a": math.inf, "b": -math.inf, "c": 1.5})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "train/loss": None, "a": None, "b": None, "c": 1.5}
    steps, values = read_metrics(tmp_path, "train/loss")
    assert steps == [1]
    assert math.isnan(values[0])


def test_tensorboard_does_not_import_torch(tmp_path):
    """The library for it does where torch is installed, which takes longer than the first step of a small model."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    code = (
        "import pathlib, sys; from lmjax.training.board import Board\n"
        "with Board(pathlib.Path(sys.argv[1])) as board: board.add_scalars({'loss': 1.0}, 1)\n"
        "assert 'torch' not in sys.modules"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environ)
