"""Presets have the published sizes, to the parameter, and a known axis name on every dimension."""

import functools

import jax
import pytest
from flax import linen as nn

from lmjax import axes
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameters import count_parameters
from lmjax.model.presets import PRESETS

# As transformers counts them: tied tables once; for encoders, the parts that each group names.
ENCODERS_WITH_POOLER = {  # BertModel, RobertaModel, AlbertModel: embeddings, layers and pooler
    "bert_tiny": 4_385_920,
    "bert_mini": 11_170_560,
    "bert_small": 28_763_648,
    "bert_medium": 41_373_184,
    "bert_base": 109_482_240,
    "bert_large": 335_141_888,
    "roberta_base": 124_645_632,
    "roberta_large": 355_359_744,
    "albert_base": 11_683_584,
}
ENCODERS_ALONE = {  # ElectraModel, ModernBertModel: neither has a pooler
    "electra_small": 13_483_008,
    "modernbert_base": 149_014_272,
}
ENCODERS_WITH_MASKED_LM = {"roberta_base": 124_697_433, "bert_base": 109_514_298}  # RobertaForMaskedLM, BertForMaskedLM
WITH_VOCABULARY = {  # ...ForCausalLM, ...ForConditionalGeneration
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "pythia_160m": 162_322_944,
    "opt_125m": 125_239_296,
    "llama2_7b": 6_738_415_616,
    "llama3_8b": 8_030_261_248,
    "llama3_2_1b": 1_235_814_400,
    "mistral_7b": 7_241_732_096,
    "mixtral_8x7b": 46_702_792_704,
    "qwen2_0_5b": 494_032_768,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_30b_a3b": 30_532_122_624,
    "gemma_2b": 2_506_172_416,
    "gemma2_2b": 2_614_341_888,
    "gemma3_1b": 999_885_952,
    "phi3_mini": 3_821_079_552,
    "olmo2_7b": 7_298_617_344,
    "smollm_135m": 134_515_008,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_v1_1_small": 76_961_152,
    "t5_v1_1_base": 247_577_856,
    "t5_v1_1_large": 783_150_080,
    "t5_v1_1_xl": 2_849_757_184,
    "long_t5_base": 247_587_456,
    "bart_base": 139_420_416,
    "bart_large": 406_291_456,
    # Vaswani et al. 2017, table 3, say 65 and 213 million. One shared table of 37,000 rows, six layers a side, biases
    # in the MLP alone; base: 37,000 * 512 + 6 * (3,150,336 + 4,199,936).
    "transformer_base": 63_045_632,
    "transformer_big": 214_171_648,
}


@functools.cache
def _shapes(name, **fields):
    """The preset's parameters; an encoder's with a pooler, a classifier and a masked-LM head."""
    config = PRESETS[name].model_copy(update=fields)
    heads = ("masked_lm", "next_sentence") if config.architecture == "encoder" else ()
    return jax.eval_shape(lambda: init_params(LanguageModel(config, heads), jax.random.key(0)))


def _count(name, pooler=False, masked_lm=False, **fields):
    shapes = dict(_shapes(name, **fields))
    head = shapes.pop("next_sentence_head", {})
    if not masked_lm:
        shapes = {part: leaves for part, leaves in shapes.items() if part not in ("transform", "output_bias")}
    return count_parameters(shapes) + (count_parameters(head["pooler"]) if pooler else 0)


@pytest.mark.parametrize(("name", "count"), ENCODERS_WITH_POOLER.items())
def test_encoders_with_their_pooler(name, count):
    assert _count(name, pooler=True) == count


@pytest.mark.parametrize(("name", "count"), ENCODERS_ALONE.items())
def test_encoders_alone(name, count):
    assert _count(name) == count


@pytest.mark.parametrize(("name", "count"), ENCODERS_WITH_MASKED_LM.items())
def test_encoders_with_masked_lm(name, count):
    assert _count(name, masked_lm=True) == count


@pytest.mark.parametrize(("name", "count"), WITH_VOCABULARY.items())
def test_models_with_vocabulary_logits(name, count):
    assert _count(name) == count


def test_every_published_preset_has_a_published_count():
    counted = ENCODERS_WITH_POOLER.keys() | ENCODERS_ALONE.keys() | WITH_VOCABULARY.keys()
    assert counted == {name for name in PRESETS if not name.startswith("nano")}


@pytest.mark.parametrize("name", ["bert_tiny", "albert_base", "t5_small", "transformer_base", "gpt2"])
def test_layers_in_turn_have_the_parameters_of_scanned_ones(name):
    assert _count(name, scan_layers=False) == _count(name)


def test_bert_with_all_its_heads():
    assert count_parameters(_shapes("bert_base")) == 110_106_428


@pytest.mark.parametrize("name", PRESETS)
def test_every_dimension_has_a_known_axis_name(name):
    leaves = jax.tree.leaves(_shapes(name), is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
    for leaf in leaves:
        assert len(leaf.names) == leaf.value.ndim
        assert None not in axes.check(leaf.names)
        used = [dict(axes.RULES)[axis] for axis in leaf.names if dict(axes.RULES)[axis]]
        assert len(used) == len(set(used)), f"{leaf.names} would split two dimensions over one mesh axis"


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("nano")])
def test_nano_models_fit_a_laptop(name):
    assert count_parameters(_shapes(name)) < 5_000_000
