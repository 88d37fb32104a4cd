"""Hostile folders, opened by every reader: nothing in them runs, and each gives its data or one clear error.

Every piece of code in them writes a file, the canary; negative controls run the pieces on purpose.
"""

import contextlib
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lmjax
from lmjax.cli import run
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.errors import UserError
from lmjax.interop.export import choose_family, export
from lmjax.interop.tokenizer_export import export_tokenizer
from lmjax.runs.pretrained import open_pretrained
from lmjax.runs.trained import load_model
from lmjax.training import manifest
from tests.faults.campaign_flips import flip
from tests.inference.scoring import tiny, tokenizer

INDEX = "model.safetensors.index.json"
# Names that transformers, Python or a library of ours would import, were the folder among those they look in.
MODULES = ("modeling_canary", "configuration_canary", "tokenization_canary", "sentencepiece", "tokenizers", "canary")
PICKLES = ("pytorch_model.bin", "model.pt", "optimizer.pt", "training_args.bin", "model.ckpt", "state.pkl")
CODE = {"auto_map": {"AutoConfig": "configuration_canary.C", "AutoModelForCausalLM": "modeling_canary.M"}}
CODE |= {"custom_pipelines": {"generate": {"impl": "modeling_canary.M"}}}
TOKENIZER = {"auto_map": {"AutoTokenizer": ["tokenization_canary.T", None]}, "trust_remote_code": True}
TOKENIZER |= {"chat_template": "{{ ().__class__.__base__.__subclasses__() }}"}


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: pathlib.Path):
        self.canary = str(canary)

    def __reduce__(self):
        return os.open, (self.canary, os.O_CREAT)


def change(path: pathlib.Path, **values: object) -> None:
    """Sets values in a JSON object, made if need be."""
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | values))


def plant(folder: pathlib.Path, canary: pathlib.Path) -> None:
    """Puts code in every form into a folder."""
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')\n")
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> pathlib.Path:
    """A folder of Hugging Face, and a workdir that was made of it."""
    place = tmp_path_factory.mktemp("sound")
    loaded = tiny("decoder")
    family = choose_family(loaded.config, (), None, {})
    ids = {f"{role}_token_id": i for role, i in tokenizer().role_ids.items()}
    beside = lambda new: export_tokenizer(tokenizer(), new, "gpt2", 16)  # noqa: E731
    export(family, loaded.config, loaded.params, place / "hf", extra=ids, beside=beside)
    run(["convert", f"--from={place / 'hf'}", f"--workdir={place / 'run'}"])
    return place


@pytest.fixture
def canary(tmp_path, monkeypatch) -> pathlib.Path:
    """The file that must never be there; the test stands in a hostile folder, as who tries a download does."""
    path = tmp_path / "canary"
    (tmp_path / "here").mkdir()
    plant(tmp_path / "here", path)
    monkeypatch.chdir(tmp_path / "here")
    return path


@pytest.fixture
def folder(sound, tmp_path, canary) -> pathlib.Path:
    """A folder of Hugging Face with code in every form beside sound data."""
    path = shutil.copytree(sound / "hf", tmp_path / "hf")
    plant(path, canary)
    change(path / "config.json", **CODE)
    change(path / "tokenizer_config.json", **TOKENIZER)
    return path


@pytest.fixture
def workdir(sound, tmp_path, canary) -> pathlib.Path:
    """A workdir with code in every form beside sound data."""
    path = shutil.copytree(sound / "run", tmp_path / "run")
    for each in (path, path / "checkpoints", *(path / "checkpoints").iterdir()):
        plant(each, canary)
    change(path / "tokenizer_config.json", **TOKENIZER)
    change(path / "huggingface.json", **CODE)
    return path


def test_the_canaries_sing(canary, tmp_path):
    """Negative control: each piece of code writes the file if it runs."""
    for name in MODULES:
        subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
        assert canary.exists(), name
        canary.unlink()
    for name in PICKLES:
        os.close(pickle.loads((tmp_path / "here" / name).read_bytes()))
        assert canary.exists(), name
        canary.unlink()


def same_parameters(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a.params, b.params)


def test_a_folder_of_hugging_face_is_data_alone(folder, sound, canary, tmp_path):
    loaded = load_model(folder)
    same_parameters(loaded, load_model(sound / "hf"))
    assert loaded.decode(loaded.encode("The young king")).strip().startswith("The young king")
    run(["convert", f"--from={folder}", f"--workdir={tmp_path / 'w'}"])
    run(["convert", f"--workdir={tmp_path / 'w'}", f"--to={tmp_path / 'out'}"])
    assert not canary.exists()
    for place in ("w", "out"):
        names = {path.name for path in (tmp_path / place).rglob("*")}
        assert not names & {*PICKLES, *(f"{name}.py" for name in MODULES)}, "code was handed on"
    for name in ("config.json", "tokenizer_config.json"):
        assert not json.loads((tmp_path / "out" / name).read_text()).keys() & {"auto_map", "trust_remote_code"}, name


def test_a_workdir_is_data_alone(workdir, sound, canary):
    loaded = load_model(workdir)
    same_parameters(loaded, load_model(sound / "hf"))
    lmjax.score(loaded, [("The young", " king")])
    assert not canary.exists()


def no_shards(folder, canary):
    (folder / "model.safetensors").unlink()


def split(folder: pathlib.Path, file: str) -> None:
    """Makes an index that says of one tensor that it is in `file`."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    places = dict.fromkeys(tensors, "a.safetensors") | {next(iter(tensors)): file}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def above(folder, canary):
    save_file(load_file(folder / "model.safetensors"), folder.parent / "x.safetensors")
    split(folder, "../x.safetensors")


def absolute(folder, canary):
    save_file(load_file(folder / "model.safetensors"), folder.parent / "x.safetensors")
    split(folder, str(folder.parent / "x.safetensors"))


def pickled(folder, canary):
    split(folder, "pytorch_model.bin")


def pickle_by_another_name(folder, canary):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(canary)))


def linked_secret(folder, canary):
    (folder / "model.safetensors").unlink()
    (folder.parent / "secret").write_text("hunter2 " * 100)
    (folder / "model.safetensors").symlink_to(folder.parent / "secret")


def linked_config(folder, canary):
    (folder.parent / "secret").write_text("hunter2 " * 100)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder.parent / "secret")


def linked_to_itself(folder, canary):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")


def pipe_as_shard(folder, canary):
    os.mkfifo(folder / "b.safetensors")
    split(folder, "b.safetensors")


def pipe_as_tokenizer(folder, canary):
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def endless_tokenizer(folder, canary):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/dev/zero")


def endless_model(folder, canary):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.model").symlink_to("/dev/zero")


def asks_for_trust(folder, canary):
    change(folder / "config.json", trust_remote_code=True)


def foreign_class(folder, canary):
    change(folder / "config.json", architectures=["modeling_canary.M"])


def foreign_type(folder, canary):
    change(folder / "config.json", model_type="../modeling_canary")


def huge_config(folder, canary):
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**31)


HOSTILE = (
    no_shards, above, absolute, pickled, pickle_by_another_name, linked_secret, linked_config, linked_to_itself,
    pipe_as_shard, pipe_as_tokenizer, endless_tokenizer, asks_for_trust, foreign_class, foreign_type, huge_config,
)  # fmt: skip


def refused(read, *arguments) -> str:
    """Returns the message of the one clear error that a reader gives."""
    with pytest.raises(UserError) as caught:
        read(*arguments)
    said = str(caught.value)
    assert len(said) < 1500
    assert "Traceback" not in said
    assert "hunter2" not in said, "the message tells what is in a file outside the folder"
    return said


@pytest.mark.parametrize("how", HOSTILE, ids=lambda f: f.__name__)
def test_a_folder_that_reaches_for_more_is_refused(folder, canary, how):
    how(folder, canary)
    assert str(folder) in refused(load_model, folder)
    assert not canary.exists()


def test_a_sentencepiece_model_without_end_is_refused(folder, canary):
    endless_model(folder, canary)
    refused(load_tokenizer, str(folder))


def code_as_config(workdir, canary):
    (workdir / "config.json").write_text(f"__import__('os').open({str(canary)!r}, 64)")


def named_objective(workdir, canary):
    values = json.loads((workdir / "config.json").read_text())
    values["task"]["objective"] = ["canary.Objective"]
    (workdir / "config.json").write_text(json.dumps(values))


def tagged(workdir, canary):
    change(workdir / "config.json", **{"py/object": "canary.C", "!!python/object/apply:os.open": [str(canary), 64]})


def named_scheme(workdir, canary):
    values = json.loads((workdir / "config.json").read_text())
    values["model"]["positions"] = "canary:Scheme"
    (workdir / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("how", [code_as_config, named_objective, tagged, named_scheme], ids=lambda f: f.__name__)
def test_a_workdir_that_names_code_is_refused(workdir, canary, how):
    how(workdir, canary)
    assert "config" in refused(load_model, workdir)
    assert not canary.exists()


def resealed(checkpoint: pathlib.Path) -> None:
    """Writes the manifest of a checkpoint anew, as an attacker can."""
    (checkpoint / manifest.NAME).unlink()
    manifest.write(checkpoint)
    manifest.merge(checkpoint)


def metadata(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of JSON in a workdir's checkpoint, which orbax reads."""
    files = [path for path in (workdir / "checkpoints").rglob("*") if path.is_file() and path.suffix not in (".py",)]
    return sorted(path for path in files if path.read_bytes()[:1] == b"{")


def handlers(values: dict) -> dict:
    """Returns metadata whose every name of a Python type is one of the attacker's."""
    if isinstance(values, dict):
        return {k: handlers(v) for k, v in values.items()}
    named = isinstance(values, str) and ("." in values or values.isidentifier())
    return "canary.Handler" if named else values


def test_a_checkpoint_whose_metadata_names_code_runs_none(workdir, canary):
    found = metadata(workdir)
    assert found
    for path in found:
        before = path.read_text()
        path.write_text(json.dumps(handlers(json.loads(before)) | {"item_handlers": {"params": "canary.Handler"}}))
        resealed(next(parent for parent in path.parents if parent.name.isdigit()))
        with contextlib.suppress(UserError):
            load_model(workdir)
        assert not canary.exists(), path
        path.write_text(before)


def test_a_flipped_bit_in_a_workdir_of_others_is_found(workdir, canary):
    path = max((p for p in (workdir / "checkpoints").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    flip(path, 8 * path.stat().st_size // 2)
    assert path.name in refused(load_model, workdir)


def test_opening_a_hostile_folder_changes_nothing_in_it(folder, workdir):
    before = {p: p.stat().st_mtime_ns for place in (folder, workdir) for p in place.rglob("*")}
    open_pretrained(folder)
    load_model(workdir)
    assert before == {p: p.stat().st_mtime_ns for place in (folder, workdir) for p in place.rglob("*")}
