"""GPT-2 (Radford et al. 2019)."""

from __future__ import annotations

from typing import Any

from lmjax.interop.fields import ACTIVATIONS, Fields
from lmjax.interop.table import Family, linear, norm, tensor
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import INPUTS, LAYER, STACK


def read(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig."""
    width = fields.integer("n_embd", 768)
    fields.expect(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    # The precision of attention scores, and fields that transformers does not read for GPT-2.
    fields.skip("reorder_and_upcast_attn", "n_ctx", "n_special", "predict_special_tokens", "afn")
    fields.skip(*(f"summary_{x}" for x in ("activation", "first_dropout", "proj_to_labels", "type", "use_proj")))
    return {
        "architecture": "decoder",
        "vocab_size": fields.integer("vocab_size", 50_257),
        "embed_dim": width,
        "num_layers": fields.integer("n_layer", 12),
        "num_heads": fields.integer("n_head", 12),
        "mlp_dim": fields.integer("n_inner", None) or 4 * width,
        "max_length": fields.integer("n_positions", 1024),
        "norm_epsilon": fields.take("layer_norm_epsilon", 1e-5),
        "mlp": fields.choose("activation_function", ACTIVATIONS, "gelu_new"),
        "head.tied": fields.take("tie_word_embeddings", True),
        # lmjax has one rate for embeddings and residual branches.
        "dropout.residual": max(fields.take("resid_pdrop", 0.1), fields.take("embd_pdrop", 0.1)),
        "dropout.attention": fields.take("attn_pdrop", 0.1),
        "initializer": "scaled",
        "init_std": fields.take("initializer_range", 0.02),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json."""
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.embed_dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.mlp_dim,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": config.mlp,
        "tie_word_embeddings": config.head.tied,
        "resid_pdrop": config.dropout.residual,
        "embd_pdrop": config.dropout.residual,
        "attn_pdrop": config.dropout.attention,
        "initializer_range": config.init_std,
    }


_QKV = tuple(f"{LAYER}/attention/{x}" for x in ("query", "key", "value"))
_BLOCK = "transformer.h.{i}"

FAMILIES = {
    "gpt2": Family(
        read=read,
        write=write,
        table=(
            *tensor("embedding/table", "transformer.wte.weight"),
            *tensor(f"{INPUTS}/positions/table", "transformer.wpe.weight"),
            *linear(_QKV, f"{_BLOCK}.attn.c_attn", transposed=False),
            *linear(f"{LAYER}/attention/out", f"{_BLOCK}.attn.c_proj", inputs=2, transposed=False),
            *norm(f"{LAYER}/attention_norm", f"{_BLOCK}.ln_1"),
            *norm(f"{LAYER}/mlp_norm", f"{_BLOCK}.ln_2"),
            *linear(f"{LAYER}/mlp/up", f"{_BLOCK}.mlp.c_fc", transposed=False),
            *linear(f"{LAYER}/mlp/down", f"{_BLOCK}.mlp.c_proj", transposed=False),
            *norm(f"{STACK}/final_norm", "transformer.ln_f"),
            *linear("output", "lm_head"),
            *linear("classifier_head/classifier", "score"),
        ),
        heads={"GPT2LMHeadModel": (), "GPT2ForSequenceClassification": ("classifier",)},
        base="transformer.",
        bare=("GPT2Model",),
        copies={"lm_head.weight": "transformer.wte.weight"},
        # Attention masks in older files.
        ignored=("*.attn.bias", "*.attn.masked_bias"),
    )
}
