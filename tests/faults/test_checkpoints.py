"""A damaged checkpoint is found, named and passed over, whatever is damaged in it; readers leave a run alone."""

import gc
import shutil
import threading
import zlib

import pytest

from lmjax.errors import CheckpointError, SaveError
from lmjax.training import manifest
from lmjax.training.checkpoint import (
    CheckpointConfig,
    Checkpoints,
    SavedCheckpoints,
    checkpoint_folder,
    saved_steps,
    temporaries,
)
from tests.faults.campaign_flips import NEW, OLD, abstract, files, flip, outcome, run, same, state, two_checkpoints

# Orbax leaves tasks behind in an event loop that it closes, when a file that it reads is damaged or gone.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def _collected():
    """Collects those tasks before the tests of another file."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return two_checkpoints(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def workdir(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def damages(workdir):
    """Yields each file, and how it is damaged."""
    for path in files(workdir):
        content = path.read_bytes()
        if content:
            flip(path, 8 * (len(content) // 2) + 3)
            yield path, "a bit flipped"
            path.write_bytes(content[: len(content) // 2])
            yield path, "truncated"
        path.unlink()
        yield path, "deleted"
        path.write_bytes(content)


def test_damage_of_any_file_is_named_and_the_step_before_is_loaded(workdir):
    wrong = {}
    for path, how in damages(workdir):
        name = path.relative_to(checkpoint_folder(workdir, NEW)).as_posix()
        if (found := outcome(workdir, name)) != "found":
            wrong[name, how] = found
    assert not wrong
    assert same(SavedCheckpoints(workdir).restore(abstract()), state(NEW)), "whole again, it is not loaded"


def test_without_the_manifest_flips_are_loaded_in_silence(tmp_path, monkeypatch):
    """The negative control: it is the manifest that finds them."""
    monkeypatch.setattr(manifest, "problems", lambda *_: [])
    assert run(tmp_path / "run", 40).counts["loaded in silence"] > 0


def test_all_damaged_is_an_error_that_names_the_files(workdir):
    for step in (OLD, NEW):
        (checkpoint_folder(workdir, step) / "commit_success.txt").unlink()
    with pytest.raises(CheckpointError, match=r"step 2: commit_success.txt: is missing; step 1: commit_success"):
        SavedCheckpoints(workdir).restore(abstract())


def test_a_manifest_of_an_earlier_version_finds_a_flipped_bit(tmp_path):
    """Its checksums are CRC-32, by its title."""
    (tmp_path / "array").write_bytes(b"numbers" * 50)
    body = f"lmjax manifest 1: CRC-32 of every 64 MiB\n350 {zlib.crc32(b'numbers' * 50):08x} array\n"
    (tmp_path / manifest.NAME).write_text(f"{body}end {zlib.crc32(body.encode()):08x}\n")
    assert manifest.problems(tmp_path) == []
    (tmp_path / "array").write_bytes(b"numbers" * 49 + b"nunbers")
    assert "array: its bytes are not those that were saved (CRC-32 " in manifest.problems(tmp_path)[0]
    (tmp_path / manifest.NAME).write_text(f"{body}end 00000000\n")
    assert manifest.problems(tmp_path) == [f"{manifest.NAME}: is damaged"]


def test_a_checkpoint_of_before_manifests_is_read_with_a_note(workdir, caplog):
    folder = checkpoint_folder(workdir, NEW)
    (folder / manifest.NAME).unlink()
    metadata = folder / manifest.METADATA
    metadata.write_text(metadata.read_text().replace('"lmjax"', '"other"'))
    assert same(SavedCheckpoints(workdir).restore(abstract()), state(NEW))
    assert "cannot be verified" in caplog.text


def test_a_file_of_several_pieces_has_a_checksum_of_each(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "_PIECE", 4)
    (tmp_path / "data").write_bytes(b"0123456789")
    manifest.write(tmp_path)
    manifest.merge(tmp_path)
    assert manifest.problems(tmp_path) == []
    for place in range(10):
        flip(tmp_path / "data", 8 * place)
        assert "data: its bytes" in manifest.problems(tmp_path)[0]
        flip(tmp_path / "data", 8 * place)


def test_each_process_describes_and_verifies_its_share(tmp_path):
    for name in ("a", "ocdbt.process_0", "ocdbt.process_1", "z"):
        (tmp_path / name).write_text(name)
    for process in range(2):
        manifest.write(tmp_path, process, 2)
    manifest.merge(tmp_path, 2)
    assert manifest.problems(tmp_path) == []
    for path in [p for p in tmp_path.iterdir() if p.name != manifest.NAME]:
        flip(path, 0)
        assert sum(len(manifest.problems(tmp_path, process, 2)) for process in range(2)) == 1
        flip(path, 0)


def test_a_reader_changes_nothing(workdir):
    """Also what looks like the rest of a killed save: it may be a save that is under way."""
    partial = workdir / "checkpoints" / "3.partial"
    partial.mkdir()
    before = sorted(workdir.rglob("*"))
    SavedCheckpoints(workdir).restore(abstract())
    assert sorted(workdir.rglob("*")) == before
    with Checkpoints(workdir, CheckpointConfig()):
        assert not temporaries(workdir)


def test_reading_while_a_run_saves_harms_neither(tmp_path):
    """A reader finds a whole and recent checkpoint each time, also one whose turn to be removed has come."""
    with Checkpoints(tmp_path, CheckpointConfig(keep=1)) as checkpoints:
        checkpoints.save(0, state(0))
        checkpoints.wait()
        errors, read, done = [], [], threading.Event()

        def reader():
            while not done.is_set():
                try:
                    read.append(int(SavedCheckpoints(tmp_path).restore(abstract())["step"]))
                except Exception as e:
                    errors.append(e)

        thread = threading.Thread(target=reader)
        thread.start()
        try:
            for step in range(1, 25):
                checkpoints.save(step, state(step))
        finally:
            done.set()
            thread.join()
    assert not errors
    assert read == sorted(read)
    assert len(set(read)) > 1
    assert saved_steps(tmp_path) == [24]


def test_steps_that_are_not_good_never_drive_out_the_last_good_one(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(keep=2)) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(step, state(step), good=step <= 2)
    assert saved_steps(tmp_path) == [2, 5, 6]
    # The run that goes on knows it too.
    with Checkpoints(tmp_path, CheckpointConfig(keep=2)) as checkpoints:
        checkpoints.save(7, state(7), good=False)
        checkpoints.wait()
        assert checkpoints.steps == [2, 6, 7]
        checkpoints.save(8, state(8))
    assert saved_steps(tmp_path) == [7, 8]


def test_what_could_not_be_read_does_not_count_as_one_of_the_newest(workdir):
    """Else the checkpoints that a run makes after it fell back would be removed as the older ones."""
    with Checkpoints(workdir, CheckpointConfig(keep=1)) as checkpoints:
        checkpoints.save(9, state(9))
        checkpoints.wait()
        (checkpoint_folder(workdir, 9) / "commit_success.txt").unlink()
        shutil.copytree(checkpoint_folder(workdir, 9), checkpoint_folder(workdir, 8))
    with Checkpoints(workdir, CheckpointConfig(keep=1)) as checkpoints:
        shutil.rmtree(checkpoint_folder(workdir, 9))
        with pytest.raises(CheckpointError):
            checkpoints.restore(abstract(), 8)
        checkpoints.save(3, state(3))
    assert 3 in saved_steps(workdir)


def test_a_save_that_failed_is_reported_at_once_and_under_its_own_step(tmp_path, monkeypatch):
    ready = threading.Event()

    def fail(*_):
        ready.wait()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "write", fail)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(5, state(5))
        checkpoints.check()  # under way: nothing to report yet, and nothing is waited for
        ready.set()
        checkpoints._saving[1].exception()
        with pytest.raises(SaveError, match=r"step 5 could not be saved: .*No space left.*bytes are free"):
            checkpoints.check()
    assert saved_steps(tmp_path) == []


def test_a_save_waits_for_the_one_before_it(tmp_path, monkeypatch):
    """So a run that is killed has lost no more than one interval and the save that was under way."""
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        for step in range(1, 4):
            checkpoints.save(step, state(step))
            assert saved_steps(tmp_path)[-1:] in ([step - 1], [step]) or step == 1


def test_all_is_on_the_disk_before_a_checkpoint_has_its_name(tmp_path, monkeypatch):
    """A power cut after the rename finds every file, and the entry of the folder itself."""
    import os
    import pathlib

    events = []
    fsync, rename = os.fsync, pathlib.Path.rename

    def noted_fsync(descriptor):
        events.append(pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_rename(self, target):
        events.append((self.name, pathlib.Path(target).name))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(pathlib.Path, "rename", noted_rename)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, state(1))
    commit = events.index(("1.partial", "1"))
    partial, final = tmp_path / "checkpoints" / "1.partial", checkpoint_folder(tmp_path, 1)
    inside = {partial / path.relative_to(final) for path in final.rglob("*")} | {partial}
    # A file that is written under another name is on the disk before it is renamed.
    assert inside <= {e.with_name(e.name.removesuffix(".tmp")) for e in events[:commit] if isinstance(e, pathlib.Path)}
    assert tmp_path / "checkpoints" in events[commit:]
