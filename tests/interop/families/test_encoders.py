"""What the files of encoders say in old ways, hold beside what they name, and cannot have here."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lmjax.errors import DataError, FlagError
from lmjax.interop.checkpoint import Checkpoint, describe
from lmjax.interop.export import choose_family
from lmjax.interop.families import FAMILIES, bert, modernbert
from lmjax.model.parameters import flat
from lmjax.model.presets import PRESETS
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from tests.interop.published.encoders import PUBLISHED

RECORDED = pathlib.Path(__file__).parents[1] / "recorded"
NAMES = [*bert.FAMILIES, *modernbert.FAMILIES]
CONFIGS = {values["model_type"]: values for values, _ in PUBLISHED.values()}


def changed(name, folder, rename=lambda tensor: tensor, extra=None, **values):
    """Returns a recorded checkpoint with other fields, names of tensors and further tensors."""
    config = json.loads((RECORDED / name / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(RECORDED / name / "model.safetensors")
    save_file({rename(k): v for k, v in tensors.items()} | (extra or {}), folder / "model.safetensors")
    return Checkpoint(folder)


def params(checkpoint):
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    return flat(checkpoint.params(checkpoint.description.config, mesh))


def test_the_gammas_and_betas_of_the_first_berts_are_scales_and_biases(tmp_path):
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(tensor):
        return next((tensor.replace(new, first) for new, first in old.items() if tensor.endswith(new)), tensor)

    shutil.copytree(RECORDED / "bert", tmp_path / "same")
    (tmp_path / "old").mkdir()
    first = params(changed("bert", tmp_path / "old", rename))
    jax.tree.map(np.testing.assert_array_equal, first, params(Checkpoint(tmp_path / "same")))
    assert any("gamma" in name for name in load_file(tmp_path / "old" / "model.safetensors"))


def test_the_masked_lm_of_a_file_that_also_holds_its_pooler_and_next_sentence_layer(tmp_path):
    """As bert-base-uncased, whose config.json names the masked LM alone."""
    checkpoint = changed("bert", tmp_path, architectures=["BertForMaskedLM"])
    assert checkpoint.description.heads == ("masked_lm",)
    assert not any("pooler" in path for path in params(checkpoint))
    with pytest.raises(DataError, match=r"bert\.pooler\.dense\.\w+' is missing"):
        changed("bert_masked", tmp_path, architectures=["BertForNextSentencePrediction"])


@pytest.mark.parametrize(("name", "cls"), [(n, cls) for n in NAMES for cls in {**FAMILIES[n].heads, "": ()}])
def test_every_class_has_a_tensor_for_every_parameter(name, cls):
    """And no tensor twice; also the bare model, where it has no head. Of four layers: there are no more kinds."""
    cls = cls or FAMILIES[name].bare[0]
    depth = "n_layers" if "n_layers" in CONFIGS[name] else "num_hidden_layers"
    found = describe(pathlib.Path(name), CONFIGS[name] | {"architectures": [cls], depth: 4})
    assert found.config.num_layers == 4
    tensors = [found.rename(tensor) for row in found.rows() for tensor in row.theirs]
    assert len(tensors) == len(set(tensors))
    base = FAMILIES[name].base
    assert any(tensor.startswith(base) for tensor in tensors) != found.bare
    again = choose_family(found.config, found.heads, name, {})
    assert (again.heads, again.config) == (found.heads, found.config)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, ("position_embedding_type='relative_key'", "absolute")),
        ("bert", {"is_decoder": True}, ("is_decoder=True", "False")),
        ("bert", {"add_cross_attention": True}, ("add_cross_attention=True",)),
        ("bert", {"tie_word_embeddings": False}, ("tie_word_embeddings=False", "True")),
        ("bert", {"hidden_act": "tanh"}, ("hidden_act='tanh'", "gelu")),
        ("bert", {"architectures": ["BertLMHeadModel"]}, ("BertLMHeadModel", "BertForMaskedLM")),
        ("bert", {"attention_sinks": 4}, ("attention_sinks=4", "does not know")),
        ("roberta", {"hidden_act": "relu"}, ("hidden_act='relu'", "gelu")),
        ("roberta", {"pad_token_id": 600}, ("pad_token_id=600", "below")),
        ("electra", {"hidden_act": "relu"}, ("hidden_act='relu'", "gelu")),
        (
            "electra",
            {"architectures": ["ElectraForMultipleChoice"], "summary_activation": "tanh"},
            ("summary_activation='tanh'", "gelu"),
        ),
        ("albert", {"num_hidden_groups": 2}, ("num_hidden_groups=2", "1")),
        ("albert", {"inner_group_num": 2}, ("inner_group_num=2", "1")),
        ("albert", {"embedding_size": 4096}, ("embedding_size=4096", "projection")),
        ("modernbert", {"classifier_bias": True}, ("classifier_bias=True", "False")),
        ("modernbert", {"classifier_activation": "relu"}, ("classifier_activation='relu'", "'gelu'")),
        ("modernbert", {"rope_scaling": {"type": "yarn"}}, ("rope_scaling",)),
        ("modernbert", {"layer_types": ["full_attention"]}, ("layer_types", "28 layers")),
    ],
)
def test_what_lmjax_does_not_implement_is_refused(name, fields, words):
    with pytest.raises(FlagError) as error:
        describe(pathlib.Path("config.json"), CONFIGS[name] | fields)
    assert all(word in str(error.value) for word in words), error.value


def test_modernberts_bases_are_read_in_both_spellings():
    """A field each, where null is the other's, or as transformers 5 writes them, an object by kind of layer."""
    old = {"global_rope_theta": 5.0, "local_rope_theta": 3.0}
    kinds = {"full_attention": {"rope_theta": 5.0, "rope_type": "default"}, "sliding_attention": {"rope_theta": 3.0}}
    new = dict.fromkeys(old) | {"rope_parameters": kinds}
    found = [describe(pathlib.Path(), CONFIGS["modernbert"] | fields).config.rope for fields in (old, new)]
    assert [(rope.theta, rope.local_theta) for rope in found] == [(5.0, 3.0)] * 2
    same = describe(pathlib.Path(), CONFIGS["modernbert"] | old | {"local_rope_theta": None}).config.rope
    assert (same.theta, same.local_theta) == (5.0, None)


@pytest.mark.parametrize(
    ("preset", "name", "heads"),
    [
        ("bert_tiny", "bert", ("masked_lm", "next_sentence")),
        ("roberta_base", "roberta", ("masked_lm",)),
        ("roberta_base", "xlm-roberta", ("classifier",)),
        ("albert_base", "albert", ("masked_lm", "next_sentence")),
        ("electra_small", "electra", ("replaced_token",)),
        ("electra_small", "electra", ("classifier",)),
        ("modernbert_base", "modernbert", ("masked_lm",)),
    ],
)
def test_a_preset_is_its_family(preset, name, heads):
    config = PRESETS[preset].model_copy(update={"num_layers": min(4, PRESETS[preset].num_layers)})
    found = choose_family(config, heads, name, {})
    assert found.heads == heads


def test_an_encoder_is_any_familys_whose_classifier_differs_as_long_as_it_has_none():
    config = PRESETS["bert_tiny"].model_copy(update={"embedding.types": 0})
    assert choose_family(config, ("masked_lm",), None, {}).model_type == "distilbert"
    with pytest.raises(FlagError, match=r"head\.classifier='tanh'"):
        choose_family(config, ("classifier",), "distilbert", {})
