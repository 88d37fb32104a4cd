"""Files with the tensor names of older published checkpoints give the same models as those of today's transformers."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lmjax.errors import DataError, FlagError
from lmjax.interop.checkpoint import Checkpoint
from lmjax.interop.families import FAMILIES
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from tests.interop.cases import CASES
from tests.interop.test_recorded import FOLDER
from tests.thinned import thinned

# A tensor that files of the family have in addition to their parameters.
BUFFERS = {
    "gpt2": "{base}h.0.attn.bias",
    "gpt2_classifier": "{base}h.1.attn.masked_bias",
    "neox": "{base}layers.0.attention.bias",
    "neox_sequential": "{base}layers.1.attention.rotary_emb.inv_freq",
    "llama": "{base}layers.0.self_attn.rotary_emb.inv_freq",
    "gemma3": "{base}rotary_emb_local.inv_freq",
    "phi3": "{base}layers.0.self_attn.rotary_emb.inv_freq",
    "modernbert": "{base}layers.0.attn.rotary_emb.inv_freq",
    "bert": "{base}embeddings.position_ids",
    "bert_masked": "{base}pooler.dense.weight",
    "roberta": "{base}embeddings.position_ids",
    "xlm": "{base}embeddings.position_ids",
    "distilbert": "{base}embeddings.position_ids",
    "electra": "{base}embeddings.position_ids",
    "albert": "{base}embeddings.position_ids",
    "opt": "{base}decoder.version",
    "bart": "{base}encoder.version",
    "t5": "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
}
# Cases whose labels may be of rows or of tokens, judged by their tensors.
AMBIGUOUS = ("bert_classifier", "distilbert_classifier", "albert_classifier")
AMBIGUOUS += ("modernbert_classifier", "modernbert_mean", "modernbert_span")


@pytest.fixture(scope="module")
def device():
    return make_mesh(ParallelConfig(), jax.devices()[:1])


def checkpoint(folder, name, tensors, change=None) -> Checkpoint:
    """Returns a checkpoint with a changed recorded config and other tensors."""
    folder.mkdir()
    values = json.loads((FOLDER / name / "config.json").read_text()) | (change or {})
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint(folder)


def same(one: Checkpoint, other: Checkpoint, device) -> None:
    """Asserts that two checkpoints give the same model."""
    assert one.description.config == other.description.config
    assert one.description.heads == other.description.heads
    a, b = (x.params(x.description.config, device) for x in (one, other))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", thinned(CASES, 3))
def test_with_and_without_the_base_and_with_what_old_files_carry(name, tmp_path, device):
    """Every recorded model: without the prefix of its base, with it, and with additional masks, ids and copies."""
    recorded = Checkpoint(FOLDER / name)
    family, tensors = recorded.description.family, load_file(FOLDER / name / "model.safetensors")
    stripped = {n.removeprefix(family.base): t for n, t in tensors.items()}
    same(checkpoint(tmp_path / "stripped", name, stripped), recorded, device)
    whole = {family.names([n])[n]: t for n, t in stripped.items()}
    same(checkpoint(tmp_path / "whole", name, whole), recorded, device)
    assert whole.keys() >= {family.base + n for n in stripped if family.base + n in tensors}
    for kind, held, base in (("stripped", stripped, ""), ("whole", whole, family.base)):
        extra = {BUFFERS[name].format(base=base): np.ones(1, np.float32)} if name in BUFFERS else {}
        copies = {
            copy if base else copy.removeprefix(family.base): whole[original].copy()
            for copy, original in family.copies.items()
            if original in whole
            and copy not in whole
            and recorded.description.config.head.tied
            # The output tensor in the file shows that an mT5 is untied.
            and (name, copy) != ("mt5", "lm_head.weight")
        }
        found = checkpoint(tmp_path / f"{kind}-copies", name, held | extra | copies)
        same(found, recorded, device)
        assert found.ignored == [family.names([n])[n] for n in extra]


@pytest.mark.parametrize("name", thinned(CASES, 3))
def test_a_class_that_is_not_named_is_told_by_the_tensors(name, tmp_path, device):
    """If two classes give a tensor different meanings, the error names both; a wrong guess would not be noticed."""
    recorded = Checkpoint(FOLDER / name)
    described = recorded.description
    tensors = load_file(FOLDER / name / "model.safetensors")
    if name in AMBIGUOUS:
        with pytest.raises(FlagError, match=r'names no class, .* "architectures": \[NAME\], .*ForSeq.*, .*ForTok'):
            checkpoint(tmp_path / "x", name, tensors, {"architectures": ...})
        return
    found = checkpoint(tmp_path / "x", name, tensors, {"architectures": ...})
    same(found, recorded, device)
    # A bare decoder with a tied output has the tensors of the language model, and is read as one.
    named = {"qwen2_bare": ["Qwen2ForCausalLM"]}.get(name, described.values["architectures"])
    assert found.description.values["architectures"] == named


def test_the_patterns_of_a_family_cover_its_own_table():
    """A name of the table is never read as another name with or without the prefix."""
    for name, family in FAMILIES.items():
        written = {t.replace("{i}", "10").replace("{e}", "11") for row in family.table for t in row.theirs}
        assert family.names(written) == {t: t for t in written}, name
        if family.base:
            based = {t for t in written if t.startswith(family.base)}
            for t in sorted(based):
                short = t.removeprefix(family.base)
                assert family.names([short])[short] in (t, *({short} & written)), (name, t)


def test_of_two_tensors_for_one_parameter_neither_is_chosen(tmp_path):
    tensors = load_file(FOLDER / "gpt2_classifier" / "model.safetensors")
    tensors["wte.weight"] = tensors["transformer.wte.weight"] + 1
    with pytest.raises(DataError, match=r"'wte\.weight': no part of the model"):
        checkpoint(tmp_path / "x", "gpt2_classifier", tensors)


def test_a_pooler_may_be_left_out_of_a_bare_model_and_of_no_other(tmp_path):
    tensors = load_file(FOLDER / "bert_bare" / "model.safetensors")
    assert checkpoint(tmp_path / "with", "bert_bare", tensors).description.heads == ("pooler",)
    tensors = {n: t for n, t in tensors.items() if "pooler" not in n}
    assert checkpoint(tmp_path / "without", "bert_bare", tensors).description.heads == ()


def test_a_decoder_without_its_output_layer_is_said_to_be_one(tmp_path):
    """The error does not advise another copy of the checkpoint, but the bare class, which can read it."""
    tensors = load_file(FOLDER / "llama" / "model.safetensors")
    del tensors["lm_head.weight"]
    with pytest.raises(
        DataError, match=r"'lm_head.weight' is missing: .*without the head.*\[\"LlamaModel\"\]"
    ) as error:
        checkpoint(tmp_path / "x", "llama", tensors)
    assert "copy" not in str(error.value)
    found = checkpoint(tmp_path / "bare", "llama", tensors, {"architectures": ["LlamaModel"]})
    assert found.description.heads == ("bare",)
    tensors["model.layers.1.norm.weight"] = tensors.pop("model.layers.1.input_layernorm.weight")
    with pytest.raises(
        DataError,
        match=r"'lm_head.weight' is missing, and 1 more.*it has no 'model.layers.1.norm.weight'.*is it the config.json",
    ) as error:
        checkpoint(tmp_path / "y", "llama", tensors)
    assert "copy" not in str(error.value)


def test_a_head_that_the_class_has_not_is_not_read_and_said(tmp_path):
    tensors = load_file(FOLDER / "llama" / "model.safetensors")
    found = checkpoint(tmp_path / "x", "llama", tensors, {"architectures": ["LlamaModel"]})
    assert (found.description.heads, found.ignored) == (("bare",), ["lm_head.weight"])


def test_a_pointer_of_git_lfs(tmp_path):
    shutil.copy(FOLDER / "llama" / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(DataError, match="run `git lfs pull` there"):
        Checkpoint(tmp_path)
