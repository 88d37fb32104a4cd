"""Models in folders: of a run, of a converted checkpoint and of Hugging Face; training can start from each of them."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lmjax.cli import run
from lmjax.config import from_json
from lmjax.errors import CheckpointError, DataError, FlagError
from lmjax.inference.generate import prompt_cache
from lmjax.inference.generate.generate import GenerateConfig, generate
from lmjax.inference.loaded import PromptFormat
from lmjax.interop.export import choose_family, tensors_of
from lmjax.model.outputs_first import OutputsFirst
from lmjax.objectives.task import TaskConfig, prompt_format
from lmjax.runs.pretrained import open_pretrained, storage_mesh
from lmjax.runs.trained import load_model
from tests.inference.scoring import tokenizer

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("all_devices")]

RECORDED = pathlib.Path(__file__).parents[1] / "interop" / "recorded"
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
    """Returns the workdir of a run of four updates, whose averaged parameters differ from the last ones."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    held = "--config.data.held_out=0.2"
    ema = "--config.optimizer.ema_decay=0.5"
    run(["train", f"--data={corpus}", f"--workdir={workdir}", "--steps=4", held, ema, *SMALL])
    return workdir


def folder_with_tokenizer(tmp_path, trained) -> pathlib.Path:
    """Returns a Hugging Face folder whose tokenizer has no more ids than its model has rows."""
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
    """A run is exported, its folder is converted to a workdir, and that is exported again: the bytes are the same."""
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
    """The evaluation of the new run before any update has the loss of the old model, not that of random weights."""
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
    with pytest.raises(DataError, match="not a config of this version"):
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
    """A run of rtd has both, and Hugging Face has a class for each; the discriminator is exported."""
    model = ["--preset=electra_small", "--config.model.num_layers=1", "--config.model.vocab_size=0"]
    data = [f"--data={corpus}", "--config.data.held_out=0.2", "--steps=1", f"--workdir={tmp_path / 'run'}"]
    run(["train", "--objective=rtd", *model, *data, *SMALL])
    run(["convert", f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"])
    written = open_pretrained(str(tmp_path / "out"))
    assert written.heads == ("replaced_token",)
    assert written.origin["architectures"] == ["ElectraForPreTraining"]


def test_a_run_writes_what_it_was_trained_to_predict(trained):
    """Ids that were never predicted in training, or that the tokenizer does not have, are never generated."""
    loaded = load_model(str(trained), dtype="bfloat16")
    t, form = loaded.tokenizer, loaded.prompts
    assert form.before == (t.bos_id,)
    assert form.stop == (t.eos_id,)
    assert {t.pad_id, t.bos_id, t.mask_id, *range(t.vocab_size, 192)} <= set(form.never)
    assert not {t.eos_id, *t.text_ids.tolist()} & set(form.never)
    assert loaded.encode("a") == [t.bos_id, *t.encode("a")]
    assert {str(x.dtype) for x in jax.tree.leaves(loaded.params)} == {loaded.config.dtype} == {"bfloat16"}
    assert loaded.mesh.size == 1


@pytest.mark.parametrize(
    ("objective", "architecture", "around"),
    [
        ("next_token", "decoder", {"before": "bos"}),
        ("prefix_lm", "decoder", {"before": "bos", "bidirectional": True}),
        ("seq2seq", "decoder", {"before": "bos", "after": "eos"}),
        ("span_corruption", "encoder_decoder", {"after": "eos", "start": "pad"}),
        ("seq2seq,infilling", "encoder_decoder", {"after": "eos", "start": "pad"}),
        # Of several objectives the first one decides.
        ("next_token,prefix_lm", "decoder", {"before": "bos"}),
        ("prefix_lm,next_token", "decoder", {"before": "bos", "bidirectional": True}),
    ],
)
def test_what_stands_around_a_text_of_an_objective(objective, architecture, around):
    t = tokenizer()
    found = prompt_format(TaskConfig(objective=tuple(objective.split(","))), t, architecture)
    ids = {name: (getattr(t, f"{x}_id"),) if isinstance(x, str) else x for name, x in around.items()}
    assert found == PromptFormat(stop=(t.eos_id,), never=found.never, **ids)
    # Only span corruption generates sentinels.
    assert bool(t.sentinels & set(found.never)) == (objective != "span_corruption")
    assert not {t.eos_id, *t.text_ids.tolist()} & set(found.never)


def test_a_folder_says_how_its_texts_begin_and_end(tmp_path, trained):
    folder = folder_with_tokenizer(tmp_path, trained)
    t = load_model(str(folder)).tokenizer
    for given, stop in (([5, 7], (5, 7)), (9, (9,)), (None, (t.role_ids["eos"],))):
        values = {"eos_token_id": given, "bad_words_ids": [[6], [7, 8]]}
        (folder / "generation_config.json").write_text(json.dumps(values))
        form = load_model(str(folder)).prompts
        assert form.stop == stop
        assert form.never == (6, *range(t.vocab_size, 192))
    for name, given in (("eos_token_id", t.vocab_size), ("eos_token_id", [5, -1]), ("bad_words_ids", [["x"]])):
        (folder / "generation_config.json").write_text(json.dumps({name: given}))
        with pytest.raises(DataError, match=rf"generation_config\.json: {name}=.* is not an id .*correct it"):
            load_model(str(folder))


def test_how_an_encoder_decoder_begins(tmp_path):
    folder = shutil.copytree(RECORDED / "bart", tmp_path / "bart")
    found = open_pretrained(str(folder))
    # From its config.json; with a generation_config.json, from that file, and the rest as before.
    assert found.prompts(tokenizer()) == PromptFormat(start=(2,), stop=(2,), last=(2,))
    (folder / "generation_config.json").write_text('{"forced_bos_token_id": 4, "eos_token_id": [3, 5]}')
    assert found.prompts(tokenizer()) == PromptFormat(start=(2,), forced=(4,), stop=(3, 5))
    (folder / "generation_config.json").write_text('{"decoder_start_token_id": null, "bos_token_id": 7}')
    assert found.prompts(tokenizer()).start == (7,)
    (folder / "generation_config.json").write_text('{"forced_bos_token_id": 4000}')
    with pytest.raises(DataError, match="forced_bos_token_id=4000 is not an id"):
        found.prompts(tokenizer())


def test_a_workdir_has_the_heads_that_its_checkpoint_had(tmp_path):
    """The heads of a bare model follow from its tensors; no field of config.json tells them."""
    for name in ("bert_bare", "mistral_bare"):
        folder = shutil.copytree(RECORDED / name, tmp_path / name)
        shutil.copy(RECORDED.parents[1] / "inference" / "generate" / "recorded" / "gpt2" / "tokenizer.json", folder)
        tensors = load_file(folder / "model.safetensors")
        save_file({n: t for n, t in tensors.items() if "pooler" not in n}, folder / "model.safetensors")
        run(["convert", f"--from={folder}", f"--workdir={tmp_path / 'in' / name}"])
        found = open_pretrained(str(tmp_path / "in" / name))
        assert found.heads == {"bert_bare": (), "mistral_bare": ("bare",)}[name]
        assert found.origin == open_pretrained(str(folder)).origin
        run(["convert", f"--workdir={tmp_path / 'in' / name}", f"--to={tmp_path / 'out' / name}"])
        assert open_pretrained(str(tmp_path / "out" / name)).origin["architectures"] == found.origin["architectures"]


def test_devices_that_split_a_loaded_model(trained):
    loaded = load_model(str(trained), tensor=2)
    assert loaded.mesh.size == 2
    kernel = loaded.params["backbone"]["stack"]["layer_0"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (16, 16)
    with pytest.raises(FlagError, match=r"--tensor=4 does not divide .*'heads': 2.*; choose a divisor of all"):
        load_model(str(trained), tensor=4)
    for tensor in (0, 9):
        with pytest.raises(FlagError, match=rf"--tensor={tensor}: there are 8 device\(s\); choose from 1 to 8"):
            load_model(str(trained), tensor=tensor)


def test_a_model_that_writes_several_texts_has_kernels_with_their_outputs_first(trained):
    """On one CPU in float32; the texts, and what a cache of a prompt is known by, are those of the model as it is."""
    one, several = load_model(trained), load_model(trained, several_rows=True)
    assert any(map(_is_first, jax.tree.leaves(several.params, is_leaf=_is_first)))
    config = GenerateConfig(max_new_tokens=6)
    texts = [
        [found.ids for (found,) in generate(model, ["the old", "a queen goes"], config)] for model in (one, several)
    ]
    assert texts[0] == texts[1]
    assert prompt_cache._fingerprint(one) == prompt_cache._fingerprint(several)
    for refused in (load_model(trained, several_rows=True, dtype="bfloat16"), load_model(trained)):
        assert not any(map(_is_first, jax.tree.leaves(refused.params, is_leaf=_is_first)))


def _is_first(x):
    return isinstance(x, OutputsFirst)
