"""A workdir at any stage, whole or damaged: the same command goes on, or one message says what is wrong."""

import json
import os
import pathlib
import shutil
import signal

import pytest

from lmjax import cli
from lmjax.commands import train as command
from lmjax.commands.train import train
from lmjax.config import from_json
from lmjax.errors import CheckpointError, ConfigMismatchError, DataError, FlagError, SaveError, UserError
from lmjax.paths import write_durably
from lmjax.runs.workdir import State, claim_workdir, read_state, write_state
from lmjax.training import manifest
from lmjax.training.metrics import read_metrics
from tests.workdirs import losses

STEPS, EVERY = 4, 2


@pytest.fixture(scope="module")
def config(tiny):
    return tiny(steps=STEPS, checkpoint__every=EVERY, evaluation__every=EVERY, evaluation__patience=3)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    return train(config, tmp_path_factory.mktemp("whole") / "run", progress=False)


@pytest.fixture
def workdir(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_the_state_says_how_far_a_run_has_come(config, whole, tmp_path, monkeypatch):
    assert read_state(whole) == State("done", STEPS)
    seen = []

    def build(config, workdir):
        seen.append(read_state(workdir))
        assert from_json(workdir / "config.json") == config
        raise DataError("bad")

    monkeypatch.setattr(command, "build", build)
    with pytest.raises(DataError):
        train(config, tmp_path / "new" / "run", progress=False)
    assert seen == [State("building")]
    assert not list(tmp_path.iterdir()), "a command that failed before its run began left something behind"


def test_the_same_command_goes_on_after_a_kill_before_the_first_step(config, whole, tmp_path):
    """What was half-made, also by a command with another config, is not taken over."""
    run = tmp_path / "run"
    claim_workdir(run, config.model_copy(update={"seed": 5}))._lock.close()  # as where its process was killed
    for name in ("tokenizer.model", "data.json", "env.json", "config.tmp"):
        (run / name).write_text("half")
    (run / "checkpoints").mkdir()
    train(config, run, progress=False)
    assert losses(run) == losses(whole)
    assert from_json(run / "config.json") == config


def test_a_kill_at_any_write_of_the_claim_leaves_a_workdir_that_can_be_claimed(config, tmp_path, monkeypatch):
    """What is there after each of the claim's writes, in their order."""
    written, kept = [".lock"], {".lock": ""}
    replace = pathlib.Path.replace

    def noted(self, target):
        written.extend((self.name, target.name))
        kept.update({self.name: self.read_text(), target.name: self.read_text()})
        return replace(self, target)

    monkeypatch.setattr(pathlib.Path, "replace", noted)
    claim_workdir(tmp_path / "run", config).close()
    monkeypatch.setattr(pathlib.Path, "replace", replace)
    assert written == [".lock", "state.json.tmp", "state.json", "config.json.tmp", "config.json"]
    for count in range(len(written)):
        run = tmp_path / str(count)
        run.mkdir()
        for name in written[: count + 1]:
            if not name.endswith(".tmp") or name == written[count]:
                (run / name).write_text(kept[name][:9] if name.endswith(".tmp") else kept[name])
        with claim_workdir(run, config):
            assert read_state(run) == State("building")
            assert from_json(run / "config.json") == config
        assert not list(run.iterdir())


def test_deleted_checkpoints_never_lead_to_a_silent_start_at_step_0(config, workdir):
    shutil.rmtree(workdir / "checkpoints")
    before = (workdir / "metrics.jsonl").read_bytes()
    with pytest.raises(
        CheckpointError, match=r"checkpoint of step 4 .* is missing; restore it from a copy, or start over in another"
    ):
        train(config, workdir, progress=False)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_deleted_newest_checkpoint_is_told(config, workdir, caplog):
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    train(config, workdir, progress=False)
    assert "the newest checkpoint, of step 4, is missing; resuming from step 2" in caplog.text


def test_the_same_data_elsewhere_is_the_same_data_and_other_data_is_not(config, workdir, corpus, tmp_path):
    def moved(path):
        return config.model_copy(update={"data": config.data.model_copy(update={"train": str(path)})})

    elsewhere = shutil.copy(corpus, tmp_path / "elsewhere.txt")
    train(moved(elsewhere), workdir, progress=False)
    assert from_json(workdir / "config.json").data.train == str(elsewhere)
    (tmp_path / "elsewhere.txt").write_text(corpus.read_text().replace("king", "duke"))
    with pytest.raises(ConfigMismatchError, match=r"trained on other data: train"):
        train(moved(elsewhere), workdir, progress=False)


def test_what_changes_only_rounding_may_change_and_is_told(config, workdir, caplog):
    model = config.model.model_copy(update={"remat": "full"})
    train(config.model_copy(update={"model": model, "steps": STEPS + 1}), workdir, progress=False)
    assert "continues with model.remat: 'none' there, 'full' here" in caplog.text
    assert read_metrics(workdir, "train/loss")[0] == [*range(1, STEPS + 2)]
    caplog.clear()
    timeouts = config.parallel.model_copy(update={"connect_timeout": 60, "heartbeat_timeout": 30})
    fields = {"model": model, "steps": STEPS + 1, "parallel": timeouts}
    claim_workdir(workdir, config.model_copy(update=fields)).close()
    assert "continues with" not in caplog.text, "a timeout changes no arithmetic"
    with pytest.raises(ConfigMismatchError, match="batch_size: 8 there, 16 here"):
        train(config.model_copy(update={"batch_size": 16}), workdir, progress=False)


DAMAGES = {
    "empty": b"",
    "garbage": b"\x00\x01{{{",
    "not UTF-8": b'{"a": "\xff\xfe"}\n{"b": "\xff"}\n',
    "a list": b"[1, 2]\n[3]\n",
    "a number": b"3\n4\n",
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("name", ["config.json", "state.json", "data.json", "metrics.jsonl", "tokenizer.model"])
def test_a_damaged_file_is_one_message_that_names_it(name, config, workdir):
    newest = workdir / "checkpoints" / str(STEPS)
    for how, content in DAMAGES.items():
        # Without a last line that a kill may have cut short.
        (workdir / name).write_bytes(b"%s\n%s\n" % (content, content) if name == "metrics.jsonl" else content)
        if (name, how) == ("metrics.jsonl", "empty"):
            continue  # no line is damaged: told, and accepted, below
        with pytest.raises(UserError) as error:
            train(config, workdir, progress=False)
        assert error.value.exit_code in (65, 66, 78), how
        assert name in str(error.value), how
        assert newest.exists()


@pytest.fixture
def soon():
    """Ends a test that waits for ever."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a command waits for ever"))
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.mark.parametrize(
    "name", ["config.json", "state.json", "data.json", "metrics.jsonl", "tokenizer.model", "rollbacks.jsonl"]
)
def test_a_pipe_in_place_of_a_file_is_one_message(name, config, workdir, soon):
    (workdir / name).unlink(missing_ok=True)
    os.mkfifo(workdir / name)
    with pytest.raises(UserError, match=name):
        train(config, workdir, progress=False)


def test_a_pipe_in_a_checkpoint_or_as_data_is_one_message(config, workdir, soon):
    for name in ("manifest.txt", "_CHECKPOINT_METADATA"):
        path = workdir / "checkpoints" / str(STEPS) / name
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        assert name in manifest.problems(path.parent)[0]
        path.unlink()
        path.write_bytes(content)
    os.mkfifo(workdir / "corpus.txt")
    piped = config.data.model_copy(update={"train": str(workdir / "corpus.txt")})
    with pytest.raises(DataError, match=r"corpus\.txt.*pipe"):
        train(config.model_copy(update={"data": piped}), workdir.parent / "new", progress=False)


def test_deleted_files(config, workdir, caplog):
    shutil.move(workdir / "data.json", workdir / "kept")
    with pytest.raises(ConfigMismatchError, match=r"data.json: is missing.*--init_from"):
        train(config, workdir, progress=False)
    shutil.move(workdir / "kept", workdir / "data.json")
    for left in (lambda path: path.write_text(""), lambda path: path.unlink()):
        left(workdir / "metrics.jsonl")
        train(config, workdir, progress=False)
        assert "metrics.jsonl has no eval/heldout/loss" in caplog.text
        caplog.clear()
    (workdir / "config.json").unlink()
    with pytest.raises(FlagError, match=r"holds no run of lmjax \(no config.json\)"):
        train(config, workdir, progress=False)


def test_a_line_that_a_kill_cut_short_is_left_out(config, workdir):
    path = workdir / "metrics.jsonl"
    before = path.read_text()
    path.write_text(before + '{"step": 5, "tra')
    train(config, workdir, progress=False)
    assert path.read_text() == before


def test_a_config_with_values_of_another_kind_is_one_message(whole, tmp_path):
    """Every field in turn holds what it never should."""
    values, path = json.loads((whole / "config.json").read_text()), tmp_path / "config.json"

    def places(group):
        for name, value in list(group.items()):
            yield group, name
            if isinstance(value, dict):
                yield from places(value)

    tried = 0
    for group, name in places(values):
        kept = group[name]
        for other in ([[]], {"a": [1]}, "\0", None):
            group[name] = other
            path.write_text(json.dumps(values))
            tried += 1
            try:
                from_json(path)
            except DataError as e:
                assert str(path) in str(e)  # noqa: PT017
        group[name] = kept
    assert tried > 500


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_size_of_files_that_is_none(value, whole, tmp_path):
    with pytest.raises(FlagError, match=f"--shard_gb={value}"):
        cli.run(["convert", f"--workdir={whole}", f"--to={tmp_path / 'out'}", f"--shard_gb={value}"])
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_made(config, whole, corpus, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for place in (file / "below", pathlib.Path("/proc/nothing")):
        with pytest.raises(UserError, match=str(place)):
            train(config, place, progress=False)
        cached = config.model_copy(update={"data": config.data.model_copy(update={"cache_dir": str(place)})})
        with pytest.raises(UserError, match="cache_dir"):
            train(cached, tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()
        with pytest.raises(UserError, match=str(place)):
            cli.run(["convert", f"--workdir={whole}", f"--to={place}"])


def test_an_error_of_the_disk_in_a_workdir_is_one_message_and_others_stay(config, tmp_path, monkeypatch):
    """Also where what is written is written once, and nothing else would turn the error into a message."""

    def full(_):
        raise OSError(28, "No space left on device")

    def fail(run, stage):
        with claim_workdir(run, config) as claim:
            if stage == "training":
                claim.begun()
            monkeypatch.setattr(os, "fsync", full)
            try:
                write_durably(run / "plan.jsonl", "{}")
            finally:
                monkeypatch.undo()

    for stage in ("building", "training"):
        run = tmp_path / stage
        with pytest.raises(SaveError, match=rf"{run}/plan.jsonl: No space left on device; make room"):
            fail(run, stage)
    with pytest.raises(FileNotFoundError), claim_workdir(tmp_path / "other", config):
        (tmp_path / "elsewhere" / "file").read_text()


def test_a_second_command_waits_for_the_first_also_while_it_builds(config, tmp_path):
    with claim_workdir(tmp_path / "run", config), pytest.raises(FlagError, match="another process"):
        claim_workdir(tmp_path / "run", config.model_copy(update={"seed": 1}))


def test_a_workdir_of_before_states_goes_on(config, workdir):
    os.remove(workdir / "state.json")
    train(config, workdir, progress=False)
    assert read_state(workdir).stage == "done"


def test_a_state_is_read_as_it_was_written(tmp_path):
    for state in (State("building"), State("training", 0), State("done", 12)):
        write_state(tmp_path, state)
        assert read_state(tmp_path) == state
