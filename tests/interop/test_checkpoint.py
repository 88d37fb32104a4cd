"""Errors about a checkpoint come before anything is allocated, and name the tensor or the field."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lmjax.errors import DataError, FlagError
from lmjax.interop.checkpoint import Checkpoint
from lmjax.parallel.mesh import ParallelConfig, make_mesh

pytestmark = pytest.mark.usefixtures("all_devices")

RECORDED = pathlib.Path(__file__).parent / "recorded"
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(RECORDED / "llama" / name, tmp_path)
    return tmp_path


def change_config(folder: pathlib.Path, **values) -> None:
    path = folder / "config.json"
    old = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (old | values).items() if v is not ...}))


def change_tensors(folder: pathlib.Path, **tensors) -> None:
    path = folder / "model.safetensors"
    new = load_file(path) | tensors
    save_file({name: t for name, t in new.items() if t is not None}, path)


def params(folder: pathlib.Path, ways: int = 1):
    checkpoint = Checkpoint(folder)
    mesh = make_mesh(ParallelConfig(fsdp=ways), jax.devices()[:ways])
    return checkpoint.params(checkpoint.description.config, mesh)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({NORM: None}, f"{NORM!r} is missing"),
        (
            {"model.layers.2.self_attn.q_proj.weight": np.ones((2, 2), np.float32)},
            "no part of the model in config.json has this name",
        ),
        ({NORM: np.ones(25, np.float32)}, rf"{NORM!r} is \[25\], and by config.json it is \[24\]"),
        ({NORM: np.ones(24, np.int32)}, "does not hold floating-point numbers"),
    ],
)
def test_tensors_that_do_not_fit(folder, tensors, said):
    change_tensors(folder, **tensors)
    with pytest.raises(DataError, match=said):
        Checkpoint(folder)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_not_finite(folder, number):
    change_tensors(folder, **{NORM: np.full(24, number, np.float32)})
    with pytest.raises(DataError, match=f"{NORM!r} has 24 numbers that are not finite"):
        params(folder)


def test_copies_that_differ(folder):
    """A file with a second copy of the tied table that has other values contradicts its config."""
    shutil.copy(RECORDED / "llama_tied_biased" / "config.json", folder)
    shutil.copy(RECORDED / "llama_tied_biased" / "model.safetensors", folder)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(folder, **{"lm_head.weight": table})
    assert params(folder)
    change_tensors(folder, **{"lm_head.weight": table + 1})
    with pytest.raises(DataError, match=r"'lm_head.weight' and 'model.embed_tokens.weight' differ"):
        params(folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "mamba"}, "model_type='mamba': lmjax implements"),
        ({"model_type": ...}, "model_type=None"),
        ({"model_type": ["llama"]}, r"model_type=\['llama'\]: lmjax implements"),
        ({"architectures": ["LlamaForTokenClassification"]}, r"architectures=\['LlamaForTokenClassification'\]"),
        ({"hidden_act": "mish"}, "hidden_act='mish': lmjax implements 'silu'"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"a_new_idea": 3}, "a_new_idea=3: lmjax does not know this field"),
        ({"hidden_size": "24"}, "hidden_size='24': must be a positive whole number"),
        ({"hidden_size": -24}, "hidden_size=-24: must be a positive whole number"),
        ({"hidden_size": ...}, "hidden_size: is missing"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: is larger than any model's"),
        ({"vocab_size": 10**13}, "vocab_size=10000000000000: is larger than any model's"),
        ({"vocab_size": 2**31}, "vocab_size=2147483648: is larger than any model's"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps='small'"),
        ({"num_attention_heads": 5}, "num_heads=5 is not a multiple of num_kv_heads=2"),
        ({"rope_parameters": {"rope_type": "su"}}, "rope_parameters: rope_type='su'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "mood": 1}}, "mood=1: lmjax does not know"),
        ({"rope_parameters": 7}, "rope_parameters=7: must be an object"),
        ({"rope_theta": 5e5}, r"rope_theta=500000.0: another field of the file says 10000.0; remove"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling=.*: is not what rope_parameters says; remove",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2.0}},
            "rope_type='dynamic': another field of the file says 'linear'; remove",
        ),
        ({"rope_theta": float("nan")}, "rope_theta=nan: must be a finite number"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps=1000.*: must be a finite number"),
    ],
)
def test_fields_that_are_not_implemented(folder, values, said):
    change_config(folder, **values)
    with pytest.raises(FlagError, match=said):
        Checkpoint(folder)


def test_more_layers_than_the_files_can_hold(folder):
    """Tracing all layers would take hours; the number of tensors shows the error before."""
    change_config(folder, num_hidden_layers=9_999)
    with pytest.raises(DataError, match=r"config\.json says 9999 layers, but there are only 21 tensors"):
        Checkpoint(folder)


def test_what_is_not_read_is_said(folder):
    change_tensors(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)})
    assert Checkpoint(folder).ignored == ["model.layers.0.self_attn.rotary_emb.inv_freq"]


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, '{"model_type": "llama"'])
def test_a_config_that_is_no_object(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(DataError, match=r"config\.json"):
        Checkpoint(folder)


def test_a_truncated_file(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"model\.safetensors: not a whole safetensors file"):
            Checkpoint(folder)


def test_a_header_that_lies(folder):
    """A header of 2**60 bytes, or a tensor that begins after the file's end, is refused because of its size."""
    path = folder / "model.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match="not a whole safetensors file"):
        Checkpoint(folder)
    header = json.dumps({NORM: {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    with pytest.raises(DataError, match="not a whole safetensors file"):
        Checkpoint(folder)


def test_pickles_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin may hold code and is not read"):
        Checkpoint(folder)


def shard(folder: pathlib.Path, parts: int = 3) -> dict[str, str]:
    """Splits the checkpoint's file into several files with an index, and returns the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % parts}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return places


def test_several_files_are_one_checkpoint_on_any_mesh(folder):
    whole = params(folder)
    shard(folder)
    split = params(folder, ways=8)
    table = split["embedding"]["table"]
    assert table.addressable_shards[0].data.size == table.size // 8
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), split, whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda places: places | {NORM: "../../elsewhere.safetensors"}, "is not a file of this folder"),
        (lambda places: places | {NORM: "/etc/passwd"}, "is not a file of this folder"),
        (lambda places: places | {NORM: "model-9.safetensors"}, r"model-9\.safetensors: not a whole"),
        (lambda places: places | {"made.up": "model-0.safetensors"}, "lacks 'made.up'"),
        (lambda places: places | {NORM: 3}, "no weight_map"),
        (lambda places: {}, "no weight_map"),
    ],
)
def test_an_index_that_lies(folder, change, said):
    places = shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": change(places)}))
    with pytest.raises(DataError, match=said):
        Checkpoint(folder)
