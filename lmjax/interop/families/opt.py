"""OPT (Zhang et al. 2022, arXiv:2205.01068)."""

from __future__ import annotations

from typing import Any

from lmjax.interop.fields import ACTIVATIONS, Fields
from lmjax.interop.table import Family, attention, linear, norm, tensor
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import INPUTS, LAYER, STACK


def read(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig."""
    width = fields.integer("hidden_size")
    # Only opt-350m has token embeddings of another width; it adds positions after their projection.
    fields.expect(word_embed_proj_dim=width, _remove_final_layer_norm=False, layerdrop=0.0)
    # Galactica's files have these fields; the values are those of every OPT.
    fields.expect(learned_embeddings=True, scale_embeddings=False)
    fields.skip("activation_dropout", "output_projection")  # read by no version of transformers
    linears = ("query", "key", "value", "out", "up", "down") if fields.take("enable_bias", True) else ()
    affine = fields.take("layer_norm_elementwise_affine", True)
    return {
        "architecture": "decoder",
        "vocab_size": fields.integer("vocab_size"),
        "embed_dim": width,
        "num_layers": fields.integer("num_hidden_layers"),
        "num_heads": fields.integer("num_attention_heads"),
        "mlp_dim": fields.integer("ffn_dim"),
        "max_length": fields.integer("max_position_embeddings"),
        "position_offset": 2,
        "norm_position": "pre" if fields.take("do_layer_norm_before", True) else "post",
        "norm_scale": affine,
        "biases": (*linears, "norm") if affine else linears,
        "mlp": fields.choose("activation_function", ACTIVATIONS, "relu"),
        "head.tied": fields.take("tie_word_embeddings", True),
        "dropout.residual": fields.number("dropout", 0.1),
        "dropout.attention": fields.number("attention_dropout", 0.0),
        "init_std": fields.number("init_std", 0.02),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "word_embed_proj_dim": config.table_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "ffn_dim": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        "do_layer_norm_before": config.norm_position != "post",
        "layer_norm_elementwise_affine": config.norm_scale,
        "enable_bias": "query" in config.biases,
        "activation_function": config.mlp,
        "tie_word_embeddings": config.head.tied,
        "dropout": config.dropout.residual,
        "attention_dropout": config.dropout.attention,
        "init_std": config.init_std,
    }


_DECODER, _BLOCK = "model.decoder", "model.decoder.layers.{i}"
_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")

FAMILIES = {
    "opt": Family(
        read=read,
        write=write,
        table=(
            *tensor("embedding/table", f"{_DECODER}.embed_tokens.weight"),
            *tensor(f"{INPUTS}/positions/table", f"{_DECODER}.embed_positions.weight"),
            *attention(f"{LAYER}/attention", f"{_BLOCK}.self_attn.", _ATTENTION),
            *norm(f"{LAYER}/attention_norm", f"{_BLOCK}.self_attn_layer_norm"),
            *norm(f"{LAYER}/mlp_norm", f"{_BLOCK}.final_layer_norm"),
            *linear(f"{LAYER}/mlp/up", f"{_BLOCK}.fc1"),
            *linear(f"{LAYER}/mlp/down", f"{_BLOCK}.fc2"),
            *norm(f"{STACK}/final_norm", f"{_DECODER}.final_layer_norm"),
            *linear("output", "lm_head"),
            *linear("classifier_head/classifier", "score"),
        ),
        heads={"OPTForCausalLM": (), "OPTForSequenceClassification": ("classifier",)},
        base="model.",
        bare=("OPTModel",),
        copies={"lm_head.weight": f"{_DECODER}.embed_tokens.weight"},
        # A version number of fairseq.
        ignored=("*decoder.version",),
    )
}
