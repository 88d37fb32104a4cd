"""Paths given by users: `~` is expanded, files of file managers are ignored, and commands in messages are quoted."""

import errno
import pathlib
import shlex
import shutil

import pytest

from lmjax.cli import run
from lmjax.commands import convert_flags, evaluate_flags, generate_flags, tokenizer_flags, train_flags
from lmjax.data.sources import DataConfig, read_documents
from lmjax.data.tokenizer import Tokenizer
from lmjax.errors import DataError, FlagError
from lmjax.paths import expanded, is_free, make_folders, new_folder, remove_folder, remove_folders, shell_quoted

LITTER = (".DS_Store", "._x", ".localized", "Thumbs.db", "desktop.ini", ".nfs000001")


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home directory with a space in its name, which is not the working directory."""
    folder = tmp_path / "the home"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield folder
    assert not list((tmp_path / "elsewhere").iterdir()), "a folder called ~ was made, or a file beside it"


# Flags of places that no reader behind them expands; those of other places are in the next test.
PLACES = {"workdir", "to", "output", "prompts", "include_path"}


@pytest.mark.parametrize(
    "command", [train_flags, tokenizer_flags, convert_flags, evaluate_flags, generate_flags], ids=lambda m: m.__name__
)
def test_flags_that_name_a_place_know_the_home_directory(command, home):
    values = command.define()
    for name in PLACES & set(values):
        values[name].parse("~/x")
        assert values[name].value == f"{home}/x", f"--{name}"


def test_readers_know_the_home_directory(home):
    (home / "a.txt").write_text("one")
    (home / "e.py").write_text("raise FileExistsError")
    assert [d.text for d in read_documents("~/a.txt")] == [d.text for d in read_documents("~/*.txt")] == ["one"]
    assert DataConfig(cache_dir="~/c").cache_path == f"{home}/c"
    for argv in (["train", "--config=~/e.py"], ["train", "--config=~/e.py:x"]):
        with pytest.raises(FileExistsError):
            run(argv)
    for argv in (["generate", "--model=~/m"], ["train", "--init_from=~/m"], ["convert", "--from=~/m", "--to=~/n"]):
        with pytest.raises(FlagError, match=r"^~/m: there is no such folder"):
            run(argv)
        (home / "m").mkdir()
        with pytest.raises(FlagError, match=r"~/m: holds no config\.json"):
            run(argv)
        (home / "m").rmdir()
    (home / "t.model").write_bytes(b"x")
    with pytest.raises(FlagError, match=r"'~/t\.model' \(1 bytes\) is not a whole"):
        Tokenizer.load("~/t.model")
    assert expanded("~no-such-user/x") == pathlib.Path("~no-such-user/x")


def test_a_failed_command_leaves_no_folder(home):
    (home / "a.txt").write_text("One text.")
    for argv in (
        ["train", "--workdir=~/runs/mine/1", "--data=~/a.txt"],
        ["train", "--workdir=~/runs/mine/1", "--data=~/nowhere.txt"],
        [
            "train",
            "--workdir=~/runs/mine/1",
            "--data=~/a.txt",
            "--config.data.split=tail",
            "--config.data.cache_dir=~/a.txt",
        ],
        ["tokenizer", "--output=~/t.model", "--data=~/a.txt"],
    ):
        with pytest.raises((DataError, FlagError)):
            run(argv)
        assert [path.name for path in home.iterdir()] == ["a.txt"], argv
    for name in LITTER:
        (home / "runs").mkdir(exist_ok=True)
        (home / "runs" / name).touch()
    with pytest.raises(DataError, match="one document found"):
        run(["train", "--workdir=~/runs", "--data=~/a.txt"])
    assert {path.name for path in (home / "runs").iterdir()} == set(LITTER), "a file of others is gone, or ours is left"


@pytest.mark.parametrize("by", ["field", "variable"])
@pytest.mark.parametrize("below", ["", "/and/more"])
def test_a_cache_that_is_a_file_is_one_error(by, below, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    place = f"{tmp_path}/file{below}"
    name = "data.cache_dir" if by == "field" else "LMJAX_CACHE"
    monkeypatch.setenv("LMJAX_CACHE", place if by == "variable" else "")
    for argv in (["train", f"--workdir={tmp_path}/run"], ["evaluate", "--model=x", "--data=stdlib"]):
        given = [f"--config.data.cache_dir={place}"] if by == "field" else []
        if given and argv[0] != "train":
            continue
        with pytest.raises(
            FlagError, match=rf"{name}: '{place}' cannot be a folder, because '{tmp_path}/file' is a file"
        ):
            run([*argv, *given])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_litter_does_not_fill_a_folder(tmp_path):
    assert is_free(tmp_path / "none")
    for name in LITTER:
        (tmp_path / name).touch()
    assert is_free(tmp_path)
    assert not is_free(tmp_path / ".DS_Store")
    (tmp_path / ".git").mkdir()
    assert not is_free(tmp_path)


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "a" / "b" / "new"
    with pytest.raises(FileNotFoundError), new_folder(folder) as temporary:
        (temporary / "no folder" / "file").touch()
    assert not list(tmp_path.iterdir())
    made = make_folders(folder)
    (folder / ".DS_Store").touch()
    with new_folder(folder) as temporary:
        (temporary / "file").touch()
    assert [path.name for path in folder.iterdir()] == ["file"]
    remove_folders(made)
    assert (folder / "file").exists(), "a folder that is not empty was removed"


def test_shown_paths_are_one_word_of_a_shell(tmp_path):
    for name in ("plain", "a b", "it's", "$HOME", "a;b", "*"):
        assert shlex.split(f"x --y={shell_quoted(tmp_path / name)}") == ["x", f"--y={tmp_path / name}"]


def test_a_folder_is_removed_although_a_write_under_way_adds_to_it(tmp_path, monkeypatch):
    """A save that failed may write for a moment in threads of tensorstore, while a notebook starts the next run."""
    folder, real, calls = tmp_path / "folder", shutil.rmtree, []
    folder.mkdir()

    def late(path):
        calls.append(path)
        if len(calls) < 3:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        real(path)

    monkeypatch.setattr(shutil, "rmtree", late)
    remove_folder(folder)
    assert not folder.exists()
    with pytest.raises(FileNotFoundError):
        remove_folder(folder)


@pytest.mark.parametrize("flag", ["--workdir", "--init_from", "--config.tokenizer.path", "--config.data.cache_dir"])
def test_a_name_that_is_too_long_for_a_file_is_one_message(flag, tmp_path):
    name = "x" * 5000
    others = [] if flag == "--workdir" else [f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(FlagError, match=f"{flag}.*x{{20}}"):
        run(["train", f"{flag}={name}", *others])


def test_no_path_has_a_nul():
    with pytest.raises(FlagError, match=r"--output=.*NUL"):
        run(["tokenizer", "--output=a\0b"])
