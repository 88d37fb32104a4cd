"""Models in folders: a run's, a converted one, Hugging Face's own; training goes on from each of them."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lmjax.cli import run
from lmjax.config import from_json
from lmjax.errors import CheckpointError, DataError, FlagError
from lmjax.interop.export import choose_family, tensors_of
from lmjax.pretrained import open_pretrained, storage_mesh

RECORDED = pathlib.Path(__file__).parent / "interop" / "recorded"
SMALL = (
    "--config.model.embed_dim=16",
    "--config.model.num_heads=2",
    "--config.model.mlp_dim=32",
    "--config.model.max_length=32",
    "--config.task.length=32",
    "--config.tokenizer.kind=char",
    "--config.tokenizer.byte_fallback=false",
    "--config.batch_size=8",
    "--config.evaluation.batches=1",
    "--config.logging.tensorboard=false",
    "--noprogress",
)


def tensors(source) -> dict[str, np.ndarray]:
    found = choose_family(source.config, source.heads, None, source.origin)
    return dict(
        tensors_of(found, source.config, source.params(source.config, storage_mesh(source.config, source.heads)))
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus) -> pathlib.Path:
    """A run of four updates, averaged with a decay that makes the average differ from the parameters."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    held = "--config.data.held_out=0.2"
    ema = "--config.optimizer.ema_decay=0.5"
    run(["train", f"--data={corpus}", f"--workdir={workdir}", "--steps=4", held, ema, *SMALL])
    return workdir


def folder_with_tokenizer(tmp_path, trained) -> pathlib.Path:
    """A Hugging Face folder whose tokenizer has no more ids than its model has rows."""
    run(["convert", f"--workdir={trained}", f"--to={tmp_path / 'hf'}"])
    return tmp_path / "hf"


def test_a_run_gives_what_it_evaluates(trained):
    source = open_pretrained(str(trained))
    config = from_json(trained / "config.json").model
    assert source.config.vocab_size == 192
    assert source.config == config.model_copy(update={"vocab_size": 192})
    stacked = source.config.model_copy(update={"scan_layers": True})
    params = source.params(stacked, storage_mesh(stacked, ()))
    assert jax.tree.leaves(params["backbone"]["stack"]["layers"])[0].shape[0] == source.config.num_layers


def test_out_and_in_again_is_bit_equal(trained, tmp_path):
    """A run goes out; its folder comes in as a workdir; and that goes out again: the same bytes."""
    run(["convert", f"--workdir={trained}", f"--to={tmp_path / 'a'}"])
    run(["convert", f"--from={tmp_path / 'a'}", f"--workdir={tmp_path / 'w'}"])
    run(["convert", f"--workdir={tmp_path / 'w'}", f"--to={tmp_path / 'b'}"])
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    own = tensors(open_pretrained(str(trained)))
    written = load_file(tmp_path / "a" / "model.safetensors")
    assert own.keys() == written.keys()
    for name, tensor in own.items():
        np.testing.assert_array_equal(tensor, written[name])


@pytest.mark.parametrize("kind", ["run", "folder", "converted"])
def test_training_goes_on_from_it(trained, tmp_path, corpus, kind, capsys):
    """The first evaluation of the new run, before any update, is what the old model scores: not that of a fresh one."""
    place = trained
    if kind != "run":
        place = folder_with_tokenizer(tmp_path, trained)
    if kind == "converted":
        run(["convert", f"--from={place}", f"--workdir={tmp_path / 'w'}"])
        place = tmp_path / "w"
    new = tmp_path / "new"
    flags = [f for f in SMALL if "model." not in f and "tokenizer." not in f]
    run(["train", f"--init_from={place}", f"--data={corpus}", f"--workdir={new}", "--steps=1",
         "--config.data.held_out=0.2", *flags])  # fmt: skip
    first = json.loads((new / "metrics.jsonl").read_text().splitlines()[0])
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    np.testing.assert_allclose(first["eval/heldout/loss"], last["eval/heldout/loss"], rtol=1e-5)
    fresh = json.loads((trained / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["eval/heldout/loss"] - fresh["eval/heldout/loss"]) > 0.01


def test_what_cannot_be_opened(tmp_path, trained):
    with pytest.raises(FlagError, match="there is no such folder"):
        open_pretrained("./nowhere")
    with pytest.raises(FlagError, match=r"holds no config\.json"):
        open_pretrained(str(tmp_path))
    with pytest.raises(FlagError, match="has no steps"):
        open_pretrained(str(RECORDED / "gpt2"), step=3)
    for file in trained.glob("*.*"):
        shutil.copy(file, tmp_path)
    source = open_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        source.params(source.config, storage_mesh(source.config, source.heads))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FlagError, match="not a config of this version"):
        open_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(DataError, match="not JSON"):
        open_pretrained(str(tmp_path))


def test_another_model_than_the_one_to_start_from(trained, tmp_path, corpus):
    with pytest.raises(FlagError, match="--preset=gpt2: --init_from brings its own model"):
        run(["train", f"--init_from={trained}", "--preset=gpt2"])
    with pytest.raises(
        FlagError, match=r"--init_from=.*mlp/down/kernel is \(32, 16\) there and \(48, 16\) in this model"
    ):
        run(["train", f"--init_from={trained}", f"--data={corpus}", f"--workdir={tmp_path / 'x'}",
             "--config.model.mlp_dim=48", "--config.task.length=32", "--config.data.held_out=0.2"])  # fmt: skip


def test_wrong_pairs_of_flags(trained, tmp_path):
    with pytest.raises(FlagError, match="needs two of --from=FOLDER"):
        run(["convert", f"--workdir={trained}"])
    with pytest.raises(FlagError, match="is a workdir already"):
        run(["convert", f"--from={trained}", f"--workdir={tmp_path / 'w'}"])
    with pytest.raises(FlagError, match="exists and is not empty"):
        run(["convert", f"--from={RECORDED / 'gpt2'}", f"--workdir={trained}"])
    with pytest.raises(FlagError, match="convert has no config"):
        run(["convert", f"--workdir={trained}", f"--to={tmp_path / 'x'}", "--config.seed=3"])


def test_a_discriminator_goes_out_without_its_generator(tmp_path, corpus):
    """What rtd trains has both, and Hugging Face has a class for either: the one that is kept is written."""
    model = ["--preset=electra_small", "--config.model.num_layers=1", "--config.model.vocab_size=0"]
    data = [f"--data={corpus}", "--config.data.held_out=0.2", "--steps=1", f"--workdir={tmp_path / 'run'}"]
    run(["train", "--objective=rtd", *model, *data, *SMALL])
    run(["convert", f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"])
    written = open_pretrained(str(tmp_path / "out"))
    assert written.heads == ("replaced_token",)
    assert written.origin["architectures"] == ["ElectraForPreTraining"]
