"""What the files of encoder-decoders say by a tensor, in several ways, or not at all."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lmjax.errors import DataError, FlagError
from lmjax.interop.checkpoint import Checkpoint, describe
from lmjax.interop.export import choose_family, tensors_of
from lmjax.model.presets import PRESETS
from lmjax.parallel.mesh import ParallelConfig, make_mesh

RECORDED = pathlib.Path(__file__).parents[1] / "recorded"


def changed(name: str, folder: pathlib.Path, tensors=None, **values) -> Checkpoint:
    """Returns a recorded checkpoint with other fields and tensors; `...` takes one away."""
    config = json.loads((RECORDED / name / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    shutil.copy(RECORDED / name / "model.safetensors", folder)
    if tensors is not None:
        new = load_file(folder / "model.safetensors") | tensors
        save_file({k: v for k, v in new.items() if v is not ...}, folder / "model.safetensors")
    return Checkpoint(folder)


def load(checkpoint: Checkpoint):
    return checkpoint.params(checkpoint.description.config, make_mesh(ParallelConfig(), jax.devices()[:1]))


@pytest.mark.parametrize(
    "said",
    [
        {"tie_word_embeddings": False, "scale_decoder_outputs": ...},  # as published
        {"tie_word_embeddings": True, "scale_decoder_outputs": False},  # as transformers 5 writes the same weights
    ],
)
def test_an_untied_t5_is_known_however_its_file_says_it(tmp_path, said):
    config = changed("t5_v1_1", tmp_path, **said).description.config
    assert (config.head.tied, config.head.scale) == (False, False)


def test_a_t5_that_transformers_5_tied_without_scaling(tmp_path):
    config = changed("t5", tmp_path, scale_decoder_outputs=False).description.config
    assert (config.head.tied, config.head.scale) == (True, False)
    again = choose_family(config, (), "t5", {}).config
    assert (again.head.tied, again.head.scale) == (True, False)


def test_the_first_t5_files_are_tied_and_scaled_and_repeat_the_table(tmp_path):
    fields = ("scale_decoder_outputs", "tie_word_embeddings", "feed_forward_proj", "dense_act_fn", "is_gated_act")
    table = load_file(RECORDED / "t5" / "model.safetensors")["shared.weight"]
    copies = {"lm_head.weight": table, "decoder.embed_tokens.weight": table}
    unused = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.ones((8, 3), np.float32)}
    old = changed("t5", tmp_path, copies | unused, n_positions=77, output_past=True, **dict.fromkeys(fields, ...))
    config = old.description.config
    assert (config.head.tied, config.head.scale, config.mlp, config.max_length) == (True, True, "relu", 77)
    load(old)
    with pytest.raises(DataError, match=r"'lm_head.weight' and 'shared.weight' differ"):
        load(changed("t5", tmp_path, {"lm_head.weight": table + 1}))


@pytest.mark.parametrize("name", ["mt5", "umt5"])
def test_an_untied_mt5_or_umt5_is_that_of_the_published_file(tmp_path, name):
    table = load_file(RECORDED / name / "model.safetensors")["shared.weight"]
    config = changed(name, tmp_path, {"lm_head.weight": table + 1}, tie_word_embeddings=False).description.config
    assert (config.head.tied, config.head.scale) == (False, False)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("t5", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj='gated-mish': lmjax implements"),
        ("t5_v1_1", {"dense_act_fn": "relu"}, "dense_act_fn='relu': lmjax implements only 'gelu_new'"),
        ("t5", {"is_gated_act": True}, "is_gated_act=True: lmjax implements only False"),
        ("bart", {"decoder_ffn_dim": 24}, "decoder_ffn_dim=24: encoder_ffn_dim=20"),
        ("bart", {"decoder_ffn_dim": ...}, "decoder_ffn_dim: encoder_ffn_dim=20"),
        ("bart", {"decoder_attention_heads": 4}, "decoder_attention_heads=4: encoder_attention_heads=3"),
        ("bart", {"normalize_before": True}, "normalize_before=True: lmjax implements only False"),
        ("mbart", {"normalize_embedding": False}, "normalize_embedding=False: lmjax implements only True"),
        ("bart", {"num_hidden_layers": 4}, "num_hidden_layers=4: lmjax implements only 2"),
        ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings=False: lmjax implements only True"),
        ("bart", {"architectures": ["BartForSequenceClassification"]}, "BartForSequenceClassification"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings=False"),
        ("marian", {"decoder_vocab_size": 60}, "decoder_vocab_size=60: lmjax implements only 51"),
        ("marian", {"d_model": 15}, "embeddings of even width"),
    ],
)
def test_what_is_not_implemented_is_refused(tmp_path, name, values, said):
    with pytest.raises(FlagError, match=said):
        changed(name, tmp_path, **values)


def test_sinusoidal_tables_in_a_file_are_those_of_the_model_or_refused(tmp_path):
    name = "model.decoder.embed_positions.weight"
    table = load_file(RECORDED / "pegasus" / "model.safetensors")[name]
    load(changed("pegasus", tmp_path))
    load(changed("pegasus", tmp_path, {name: table.astype(np.float16)}))
    load(changed("pegasus", tmp_path, {name: ...}))
    interleaved = np.stack(np.split(table, 2, axis=1), axis=-1).reshape(table.shape)
    for wrong in (interleaved, table[:-1]):
        with pytest.raises(DataError, match=f"{name!r} .* does not hold the values that pegasus computes"):
            load(changed("pegasus", tmp_path, {name: wrong}))


@pytest.mark.parametrize("bias", [False, True])
def test_a_bart_of_ours_has_the_bias_on_its_logits_only_if_the_model_has(bias):
    config = PRESETS["bart_base"].model_copy(update={"head.bias": bias})
    found = choose_family(config, (), None, {})
    assert (found.model_type, found.values["architectures"]) == ("bart", ["BartForConditionalGeneration"])
    assert ("final_logits_bias" in {name for row in found.rows() for name in row.theirs}) == bias


def test_the_bare_model_has_other_names_and_no_bias_and_stays_bare(tmp_path):
    """The published bart-base and bart-large are of `BartModel`."""
    tensors = load_file(RECORDED / "bart" / "model.safetensors")
    bare = {name.removeprefix("model."): t for name, t in tensors.items() if name != "final_logits_bias"}
    bare |= {"encoder.embed_tokens.weight": bare["shared.weight"]}
    read = changed("bart", tmp_path, dict.fromkeys(tensors, ...) | bare, architectures=["BartModel"])
    description, params = read.description, load(read)
    assert (description.heads, description.config.head.bias) == ((), False)
    again = choose_family(description.config, (), None, description.values)
    assert again.values["architectures"] == ["BartModel"]
    written = dict(tensors_of(again, description.config, params))
    assert written.keys() == bare.keys() - {"encoder.embed_tokens.weight"}
    assert all(np.array_equal(t, bare[name]) for name, t in written.items())


@pytest.mark.parametrize("name", ["t5_small", "t5_v1_1_small", "bart_large"])
def test_presets_are_what_the_files_say(name):
    """But for what no checkpoint depends on: the initialiser's deviation, and how fast it is computed."""
    family = name.split("_")[0]
    written = choose_family(PRESETS[name], (), family, {})
    again = describe(pathlib.Path("config.json"), written.values).config
    assert written.model_type == family
    assert again.model_dump(exclude={"num_decoder_layers"}) == PRESETS[name].model_dump(exclude={"num_decoder_layers"})
