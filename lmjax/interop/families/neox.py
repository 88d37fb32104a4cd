"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745) and Pythia (Biderman et al. 2023, arXiv:2304.01373)."""

from __future__ import annotations

from typing import Any

from lmjax.interop.fields import ACTIVATIONS, Fields, rope_fields, rope_json
from lmjax.interop.table import Family, linear, norm, tensor
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import LAYER, STACK


def read(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig."""
    theta, fraction = fields.number("rotary_emb_base", 10_000.0), fields.number("rotary_pct", 0.25)
    # Some files also have both values under the names of other families.
    fields.expect(rope_theta=theta, partial_rotary_factor=fraction)
    fields.skip("attention_probs_dropout_prob", "hidden_dropout_prob")  # read by no version of transformers
    attention = ("query", "key", "value", "out") if fields.take("attention_bias", True) else ()
    return {
        "architecture": "decoder",
        "vocab_size": fields.integer("vocab_size"),
        "embed_dim": fields.integer("hidden_size"),
        "num_layers": fields.integer("num_hidden_layers"),
        "num_heads": fields.integer("num_attention_heads"),
        "mlp_dim": fields.integer("intermediate_size"),
        "max_length": fields.integer("max_position_embeddings"),
        "block": "parallel" if fields.take("use_parallel_residual", True) else "sequential",
        "norm_epsilon": fields.number("layer_norm_eps", 1e-5),
        "biases": (*attention, "up", "down", "norm"),
        "mlp": fields.choose("hidden_act", ACTIVATIONS, "gelu"),
        "positions": "rope",
        "rope": rope_fields(fields, theta, fraction),
        "head.tied": fields.take("tie_word_embeddings", False),
        "dropout.residual": fields.number("hidden_dropout", 0.0),
        "dropout.attention": fields.number("attention_dropout", 0.0),
        "init_std": fields.number("initializer_range", 0.02),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json."""
    return {
        **rope_json(config.rope, fraction=True),
        "rotary_emb_base": config.rope.theta,
        "rotary_pct": config.rope.fraction,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        "use_parallel_residual": config.block == "parallel",
        "layer_norm_eps": config.norm_epsilon,
        "attention_bias": "query" in config.biases,
        "hidden_act": config.mlp,
        "tie_word_embeddings": config.head.tied,
        "hidden_dropout": config.dropout.residual,
        "attention_dropout": config.dropout.attention,
        "initializer_range": config.init_std,
    }


_QKV = tuple(f"{LAYER}/attention/{name}" for name in ("query", "key", "value"))
_BLOCK = "gpt_neox.layers.{i}"

FAMILIES = {
    "gpt_neox": Family(
        read=read,
        write=write,
        table=(
            *tensor("embedding/table", "gpt_neox.embed_in.weight"),
            *linear(_QKV, f"{_BLOCK}.attention.query_key_value", by_head=True),
            *linear(f"{LAYER}/attention/out", f"{_BLOCK}.attention.dense", inputs=2),
            *norm(f"{LAYER}/attention_norm", f"{_BLOCK}.input_layernorm"),
            *norm(f"{LAYER}/mlp_norm", f"{_BLOCK}.post_attention_layernorm"),
            *linear(f"{LAYER}/mlp/up", f"{_BLOCK}.mlp.dense_h_to_4h"),
            *linear(f"{LAYER}/mlp/down", f"{_BLOCK}.mlp.dense_4h_to_h"),
            *norm(f"{STACK}/final_norm", "gpt_neox.final_layer_norm"),
            *linear("output", "embed_out"),
            *linear("classifier_head/classifier", "score"),
        ),
        heads={"GPTNeoXForCausalLM": (), "GPTNeoXForSequenceClassification": ("classifier",)},
        base="gpt_neox.",
        bare=("GPTNeoXModel",),
        copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
        # Attention masks and rotary frequencies in older files.
        ignored=("*.attention.bias", "*.attention.masked_bias", "*rotary_emb*.inv_freq"),
    )
}
