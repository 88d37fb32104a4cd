"""BERT (Devlin et al. 2019, arXiv:1810.04805) and related encoders.

RoBERTa (Liu et al. 2019, arXiv:1907.11692), XLM-R (Conneau et al. 2020, arXiv:1911.02116), ELECTRA (Clark et al. 2020,
arXiv:2003.10555), ALBERT (Lan et al. 2020, arXiv:1909.11942).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from lmjax.interop.fields import ACTIVATIONS, Fields
from lmjax.interop.table import ENCODER, Family, Row, attention, linear, norm, tensor
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import BACKBONE, INPUTS, LAYER, SHARED_LAYER


def shared_fields(fields: Fields, vocab_size: int = 30_522) -> dict[str, Any]:
    """Returns the fields that all these families have in common."""
    # transformers also implements relative positions, decoders and untied outputs; no published checkpoint has them.
    fields.expect(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    fields.expect(tie_word_embeddings=True)
    return {
        "architecture": "encoder",
        "vocab_size": fields.integer("vocab_size", vocab_size),
        "max_length": fields.integer("max_position_embeddings", 512),
        "norm_position": "post",
        "embedding.norm": True,
        "head.bias": True,
        "head.transform": True,
        "initializer": "truncated_normal",
        "init_std": fields.number("initializer_range", 0.02),
    }


def shared_json(config: ModelConfig) -> dict[str, Any]:
    """Returns fields of config.json; the inverse of `shared_fields`."""
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length + config.position_offset,
        "tie_word_embeddings": config.head.tied,
        "initializer_range": config.init_std,
    }


def read(fields: Fields, **sizes: Any) -> dict[str, Any]:
    """Returns the fields of a ModelConfig.

    Args:
        fields: of config.json.
        **sizes: defaults of the family that differ from BERT's.
    """
    shared = shared_fields(fields, sizes.pop("vocab_size", 30_522))
    sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "dropout": 0.1, **sizes}
    # Google's first files describe the pooler, which is the same in all of them.
    fields.skip("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers")
    fields.skip("pooler_size_per_head", "pooler_type")
    return shared | {
        "embed_dim": fields.integer("hidden_size", sizes["hidden_size"]),
        "num_layers": fields.integer("num_hidden_layers", 12),
        "num_heads": fields.integer("num_attention_heads", sizes["num_attention_heads"]),
        "mlp_dim": fields.integer("intermediate_size", sizes["intermediate_size"]),
        "norm_epsilon": fields.number("layer_norm_eps", 1e-12),
        "mlp": fields.choose("hidden_act", ACTIVATIONS, sizes.get("hidden_act", "gelu")),
        "embedding.types": fields.integer("type_vocab_size", 2),
        "dropout.residual": fields.number("hidden_dropout_prob", sizes["dropout"]),
        "dropout.attention": fields.number("attention_probs_dropout_prob", sizes["dropout"]),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json."""
    return shared_json(config) | {
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": config.mlp,
        "type_vocab_size": config.embedding.types,
        "hidden_dropout_prob": config.dropout.residual,
        "attention_probs_dropout_prob": config.dropout.attention,
    }


def _read_roberta(fields: Fields, vocab_size: int) -> dict[str, Any]:
    """Returns the fields of a ModelConfig; the first position uses the table's row `pad_token_id` + 1."""
    values, pad = read(fields, vocab_size=vocab_size), fields.take("pad_token_id", 1)
    if pad < 0 or values["max_length"] <= pad + 1:
        raise fields.error("pad_token_id", "must be below max_position_embeddings - 1, as positions follow its row")
    fields.choose("hidden_act", _GELU, "gelu")
    return values | {"position_offset": pad + 1, "max_length": values["max_length"] - pad - 1}


def _write_roberta(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json."""
    return write(config) | {"pad_token_id": config.position_offset - 1}


def _read_electra(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig."""
    # Fields of the class for multiple choice.
    fields.skip("summary_last_dropout")
    summary = {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"}
    if fields.take("architectures", []) == ["ElectraForMultipleChoice"]:
        fields.expect(**summary)
    fields.skip(*summary)
    fields.choose("hidden_act", _GELU, "gelu")
    own = {"embedding.dim": fields.integer("embedding_size", 128), "head.classifier": "gelu"}
    return read(fields, hidden_size=256, num_attention_heads=4, intermediate_size=1024) | own


def _read_albert(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig."""
    fields.expect(num_hidden_groups=1, inner_group_num=1)
    # transformers does not read these.
    fields.skip("net_structure_type", "num_memory_blocks", "gap_size", "down_scale_factor", "classifier_dropout_prob")
    fields.skip("layers_to_keep")
    sizes = {"hidden_size": 4096, "num_attention_heads": 64, "intermediate_size": 16_384, "vocab_size": 30_000}
    values = read(fields, **sizes, hidden_act="gelu_new", dropout=0.0)
    width = fields.integer("embedding_size", 128)
    if width == values["embed_dim"]:
        raise fields.error("embedding_size", "lmjax has no projection between two equal widths")
    return values | {"embedding.dim": width, "share_layers": True}


def _write_factorised(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json."""
    return write(config) | {"embedding_size": config.table_dim}


def _write_albert(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json."""
    return _write_factorised(config) | {"num_hidden_groups": 1, "inner_group_num": 1}


# The only activation implemented for RoBERTa and ELECTRA: their masked-LM layer always has gelu.
_GELU = {"gelu": "gelu", "gelu_python": "gelu"}


def inputs(base: str) -> tuple[Row, ...]:
    """Returns the rows of the embeddings."""
    return (
        *tensor("embedding/table", f"{base}.embeddings.word_embeddings.weight"),
        *tensor(f"{INPUTS}/positions/table", f"{base}.embeddings.position_embeddings.weight"),
        *tensor(f"{INPUTS}/types/table", f"{base}.embeddings.token_type_embeddings.weight"),
        *norm(f"{INPUTS}/norm", f"{base}.embeddings.LayerNorm"),
    )


def _stack(base: str) -> tuple[Row, ...]:
    """Returns the rows of the embeddings and the layers, with BERT's names."""
    layer = f"{base}.encoder.layer.{{i}}"
    return (
        *inputs(base),
        *attention(f"{LAYER}/attention", f"{layer}.attention.", _BERT_ATTENTION),
        *norm(f"{LAYER}/attention_norm", f"{layer}.attention.output.LayerNorm"),
        *norm(f"{LAYER}/mlp_norm", f"{layer}.output.LayerNorm"),
        *linear(f"{LAYER}/mlp/up", f"{layer}.intermediate.dense"),
        *linear(f"{LAYER}/mlp/down", f"{layer}.output.dense"),
    )


def masked_lm(dense: str, ended: str, bias: str) -> tuple[Row, ...]:
    """Returns the rows of the masked-LM layer, its norm and the vocabulary bias."""
    return (*linear("transform/dense", dense), *norm("transform/norm", ended), *tensor("output_bias", bias))


def _pooled(pooler: str) -> tuple[Row, ...]:
    """Returns the rows of the heads on BERT's pooler, and of the heads that classify tokens."""
    return (
        *linear("pooler_head/pooler", pooler),
        *linear("next_sentence_head/pooler", pooler),
        *linear("classifier_head/dense", pooler),
        *linear("classifier_head/classifier", "classifier"),
        *choice(pooler),
        *TOKENS,
    )


def choice(dense: str) -> tuple[Row, ...]:
    """Returns the rows of the head that scores choices; `dense` is its hidden layer."""
    return (*linear("choice_head/dense", dense), *linear("choice_head/classifier", "classifier"))


def heads(name: str, *, pooler: bool = True) -> dict[str, tuple[str, ...]]:
    """Returns the heads of the classes that nearly all these families have."""
    found = {
        f"{name}ForMaskedLM": ("masked_lm",),
        f"{name}ForSequenceClassification": ("classifier",),
        f"{name}ForTokenClassification": ("tagger",),
        f"{name}ForQuestionAnswering": ("span",),
        f"{name}ForMultipleChoice": ("choice",),
    }
    return found | ({f"{name}Model": ("pooler",)} if pooler else {})


_BERT_ATTENTION = ("self.query", "self.key", "self.value", "output.dense")
# The classifier of RoBERTa and ELECTRA has two layers.
_TWO_LAYERS = (
    *linear("classifier_head/dense", "classifier.dense"),
    *linear("classifier_head/classifier", "classifier.out_proj"),
)
TOKENS = (*linear("tagger_head/classifier", "classifier"), *linear("span_head/classifier", "qa_outputs"))
# Position ids, and parameters that the class does not use: most published masked LMs still contain the pooler and the
# next-sentence layer of their pre-training.
IGNORED = ("*embeddings.position_ids", "*embeddings.token_type_ids", "*pooler.*")


def _roberta(name: str, vocab_size: int) -> Family:
    """Returns RoBERTa's family with classes that begin with `name`, and the default size of its vocabulary."""
    return Family(
        read=functools.partial(_read_roberta, vocab_size=vocab_size),
        write=_write_roberta,
        table=(
            *_stack("roberta"),
            *masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
            *linear("pooler_head/pooler", "roberta.pooler.dense"),
            *_TWO_LAYERS,
            *choice("roberta.pooler.dense"),
            *TOKENS,
        ),
        heads=heads(name),
        base="roberta.",
        bare=(f"{name}Model",),
        copies={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        ignored=IGNORED,
        tokenizer=ENCODER,
    )


_ALBERT_GROUP = "albert.encoder.albert_layer_groups.0.albert_layers.0"

_WITH_TYPES = dataclasses.replace(ENCODER, types=True)

FAMILIES = {
    "bert": Family(
        read=read,
        write=write,
        table=(
            *_stack("bert"),
            *masked_lm(
                "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
            ),
            *_pooled("bert.pooler.dense"),
            *linear("next_sentence_head/classifier", "cls.seq_relationship"),
        ),
        heads=heads("Bert")
        | {
            "BertForPreTraining": ("masked_lm", "next_sentence"),
            "BertForNextSentencePrediction": ("next_sentence",),
        },
        base="bert.",
        bare=("BertModel",),
        copies={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        ignored=(*IGNORED, "cls.seq_relationship.*"),
        tokenizer=_WITH_TYPES,
    ),
    "roberta": _roberta("Roberta", 50_265),
    "xlm-roberta": _roberta("XLMRoberta", 30_522),
    "electra": Family(
        read=_read_electra,
        write=_write_factorised,
        table=(
            *_stack("electra"),
            *linear(f"{BACKBONE}/project_in", "electra.embeddings_project"),
            *masked_lm("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
            *linear("replaced_token_head/dense", "discriminator_predictions.dense"),
            *linear("replaced_token_head/classifier", "discriminator_predictions.dense_prediction"),
            *_TWO_LAYERS,
            *choice("electra.sequence_summary.summary"),
            *TOKENS,
        ),
        heads=heads("Electra", pooler=False) | {"ElectraForPreTraining": ("replaced_token",)},
        base="electra.",
        bare=("ElectraModel",),
        tokenizer=_WITH_TYPES,
        copies={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
        ignored=IGNORED,
    ),
    "albert": Family(
        read=_read_albert,
        write=_write_albert,
        table=(
            *inputs("albert"),
            *linear(f"{BACKBONE}/project_in", "albert.encoder.embedding_hidden_mapping_in"),
            *attention(f"{SHARED_LAYER}/attention", f"{_ALBERT_GROUP}.attention.", ("query", "key", "value", "dense")),
            *norm(f"{SHARED_LAYER}/attention_norm", f"{_ALBERT_GROUP}.attention.LayerNorm"),
            *norm(f"{SHARED_LAYER}/mlp_norm", f"{_ALBERT_GROUP}.full_layer_layer_norm"),
            *linear(f"{SHARED_LAYER}/mlp/up", f"{_ALBERT_GROUP}.ffn"),
            *linear(f"{SHARED_LAYER}/mlp/down", f"{_ALBERT_GROUP}.ffn_output"),
            *masked_lm("predictions.dense", "predictions.LayerNorm", "predictions.bias"),
            *_pooled("albert.pooler"),
            *linear("next_sentence_head/classifier", "sop_classifier.classifier"),
        ),
        heads=heads("Albert") | {"AlbertForPreTraining": ("masked_lm", "next_sentence")},
        base="albert.",
        bare=("AlbertModel",),
        copies={
            "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
            "predictions.decoder.bias": "predictions.bias",
        },
        ignored=(*IGNORED, "sop_classifier.*"),
        tokenizer=_WITH_TYPES,
    ),
}
