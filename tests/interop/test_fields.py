"""Fields that change no number pass, fields that do are refused, and the user can accept unknown ones."""

import json
import pathlib

import pytest

from lmjax.cli import run
from lmjax.errors import FlagError
from lmjax.interop.checkpoint import Checkpoint, describe
from lmjax.interop.families import FAMILIES
from lmjax.model.language_model import abstract_params
from lmjax.model.parameters import count_parameters
from lmjax.runs.pretrained import open_pretrained
from tests.interop.published import PUBLISHED
from tests.interop.test_checkpoint import change_config, folder  # noqa: F401

CONFIG = pathlib.Path("config.json")
# Fields that any file may have: of reports, of missing heads, of generation, of trainers and of other programs.
ANY = {
    "_attn_implementation_autoset": True,
    "_commit_hash": "0" * 40,
    "_name_or_path": "/tmp/model",
    "_num_labels": 2,
    "adapters": {"adapters": {}, "config_map": {}, "fusion_config_map": {}, "fusions": {}},
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "chunk_size_feed_forward": 0,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "gradient_checkpointing": False,
    "language": "english",
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "name": "Roberta",
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_past": True,
    "output_scores": False,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "sep_token_id": None,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "temperature": 1.0,
    "tie_encoder_decoder": False,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "transformers.js_config": {"dtype": "q4"},
    "transformers_version": "4.27.4",
    "typical_p": 1.0,
    "unsloth_version": "2024.9",
    "use_bfloat16": False,
    "use_cache": True,
    "xla_device": None,
}
# Fields in files of one family, with their values there.
OWN = {
    "gpt2": {
        "n_special": 0,
        "predict_special_tokens": True,
        "n_ctx": 1024,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
    },
    "opt-125m": {"learned_embeddings": True, "scale_embeddings": False, "layer_norm_elementwise_affine": True},
    "llama-2-7b": {"max_sequence_length": 4096, "pad_token_id": -1, "mlp_bias": False, "is_llama_config": True},
    "phi-3-mini-4k": {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False},
    "albert-base-v2": {"layers_to_keep": []},
    "distilbert-base-uncased": {"finetuning_task": "sst-2", "tie_weights_": True},
    "facebook/bart-large-cnn": {
        "do_blenderbot_90_layernorm": False,
        "eos_token_ids": [2],
        "extra_pos_embeddings": 2,
        "static_position_embeddings": False,
        "unk_token_id": 3,
    },
    "Helsinki-NLP/opus-mt-en-de": {"do_blenderbot_90_layernorm": False, "decoder_vocab_size": 58_101},
    "google/pegasus-xsum": {"do_blenderbot_90_layernorm": False, "add_bias_logits": False},
    "google/umt5-small": {"scale_decoder_outputs": False},
}
# A published file, a change of it, and the error message.
REFUSED = {
    "gpt2, stanford": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "lmjax implements only False; .*accept_f"),
    "blenderbot 90M": ("facebook/bart-base", {"do_blenderbot_90_layernorm": True}, "do_blenderbot_90_layernorm=True"),
    "galactica": ("opt-125m", {"scale_embeddings": True}, "scale_embeddings=True"),
    "gte": ("qwen2.5-0.5b", {"is_causal": False}, "is_causal=False: lmjax does not know this field"),
    "embeddinggemma": ("gemma-3-1b", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    "gptq": (
        "llama-2-7b",
        {"quantization_config": {"bits": 4, "quant_method": "gptq"}},
        "lmjax reads no quantised weights; take the checkpoint before",
    ),
    "mlx": ("llama-2-7b", {"quantization": {"bits": 4, "group_size": 64}}, "lmjax reads no quantised weights"),
    "no type": ("gpt2", {"model_type": None}, "model_type=None: .*write there what these weights are"),
    "two": ("gpt2", {"whim": 1, "fancy": 2}, "fancy=2: .*nor whim; .*--accept_fields=fancy,whim"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_fields_that_change_no_number_pass(name):
    values, _ = PUBLISHED[name]
    plain = describe(CONFIG, values)
    full = describe(CONFIG, ANY | values | OWN.get(name, {}))
    assert (full.config, full.heads) == (plain.config, plain.heads)
    assert full.accepted == set()


@pytest.mark.parametrize("name", REFUSED)
def test_fields_that_would_change_numbers_are_refused(name):
    published, values, said = REFUSED[name]
    with pytest.raises(FlagError, match=said):
        describe(CONFIG, PUBLISHED[published][0] | values)


@pytest.mark.parametrize(
    ("name", "cls", "count"),
    [
        # E5-Mistral, Qwen2's embedding models, and a Llama from before transformers 4.28.
        ("mistral-7b-v0.1", "MistralModel", 7_241_732_096 - 32_000 * 4096),
        ("qwen2-7b", "Qwen2Model", 7_615_616_512 - 152_064 * 3584),
        ("llama-2-7b", "LlamaModel", 6_738_415_616 - 32_000 * 4096),
        ("llama-2-7b", "LLaMAForCausalLM", 6_738_415_616),
        ("google-t5/t5-small", "T5WithLMHeadModel", 60_506_624),
        ("qwen3-0.6b", "Qwen3Model", 596_049_920),
    ],
)
def test_classes_of_embedding_models_and_old_names(name, cls, count):
    found = describe(CONFIG, PUBLISHED[name][0] | {"architectures": [cls]})
    assert count_parameters(abstract_params(found.config, found.heads)) == count


def test_a_llama_of_before_names_had_settled():
    values, count = PUBLISHED["llama-2-7b"]
    old = {k: v for k, v in values.items() if k not in ("max_position_embeddings", "rope_scaling", "pretraining_tp")}
    old |= {"architectures": ["LLaMAForCausalLM"], "max_sequence_length": 2048}
    found = describe(CONFIG, old)
    assert found.config.max_length == 2048
    assert found.values["architectures"] == ["LlamaForCausalLM"]
    assert count_parameters(abstract_params(found.config, found.heads)) == count


def test_the_user_vouches_for_a_field(folder, tmp_path):  # noqa: F811
    """The model is the same as without the field, and an export does not have the field."""
    plain = Checkpoint(folder).description
    change_config(folder, whim=1, rope_interleaved=True, rope_parameters={"rope_type": "default", "mood": 1})
    names = ("whim", "rope_interleaved", "rope_parameters.mood")
    found = open_pretrained(str(folder), accept_fields=names)
    assert found.config == plain.config
    assert not {"whim", "rope_interleaved"} & found.origin.keys()
    for left in range(3):
        with pytest.raises(FlagError, match=rf"--accept_fields={names[left]}"):
            open_pretrained(str(folder), accept_fields=names[:left] + names[left + 1 :])
    with pytest.raises(FlagError, match="--accept_fields=hidden_size: lmjax does not refuse this field"):
        open_pretrained(str(folder), accept_fields=(*names, "hidden_size"))
    change_config(folder, quantization_config={"bits": 4})
    with pytest.raises(FlagError, match="quantised"):
        open_pretrained(str(folder), accept_fields=(*names, "quantization_config"))
    with pytest.raises(FlagError, match="--accept_fields=whim: is for --init_from"):
        run(["train", "--accept_fields=whim"])


def test_what_transformers_writes_of_a_config_is_read():
    """Every family's config class with all fields at their defaults, as written by the installed transformers."""
    transformers = pytest.importorskip("transformers")
    for name, family in FAMILIES.items():
        cls = next(iter(family.heads))
        values = getattr(transformers, cls).config_class().to_dict() | {"architectures": [cls]}
        assert describe(CONFIG, json.loads(json.dumps(values))).model_type == name
