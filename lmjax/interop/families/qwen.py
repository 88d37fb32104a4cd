"""Qwen 2 and 2.5 (Qwen team 2024, arXiv:2407.10671, 2412.15115), Qwen 3 and Qwen 3 MoE (2025, arXiv:2505.09388)."""

from __future__ import annotations

from typing import Any

from lmjax.interop.families.llama import (
    FULL,
    TABLE,
    WINDOW,
    attention_biases,
    bias_json,
    family,
    layer_types,
    period,
    shared_fields,
    shared_json,
    window_fields,
)
from lmjax.interop.fields import Fields, rope_fields, rope_json
from lmjax.interop.table import TokenizerForm, experts, linear, norm
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import LAYER


def _windows(fields: Fields) -> dict[str, Any]:
    """Returns the fields about windows; by default, layers from `max_window_layers` on have one if it is turned on."""
    layers, first = fields.integer("num_hidden_layers"), fields.take("max_window_layers", 28)
    window = _window(fields)
    return window_fields(fields, window, [FULL if window is None or i < first else WINDOW for i in range(layers)])


def _window(fields: Fields) -> int | None:
    """Returns the window, or None unless `use_sliding_window` turns it on."""
    window = None if fields.is_null("sliding_window") else fields.integer("sliding_window", 4096)
    return window if fields.take("use_sliding_window", False) else None


def _window_json(config: ModelConfig) -> dict[str, Any]:
    window = config.attention.window
    return {"use_sliding_window": window is not None, "sliding_window": window}


def read2(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig of Qwen 2."""
    fields.expect(use_mrope=False)
    own = {"biases": ("query", "key", "value"), "rope": rope_fields(fields)}
    return shared_fields(fields, kv_heads=32) | _windows(fields) | own


def write2(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json of Qwen 2."""
    types = {"layer_types": layer_types(config)}
    return shared_json(config) | _window_json(config) | types | rope_json(config.rope)


def read3(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig of Qwen 3."""
    own = {"attention.qk_norm": "head", "rope": rope_fields(fields)} | attention_biases(fields)
    return shared_fields(fields, kv_heads=32, head_dim=128) | _windows(fields) | own


def write3(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json of Qwen 3."""
    return write2(config) | bias_json(config)


def read3_moe(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig of Qwen 3 with experts."""
    own = {"attention.qk_norm": "head", "attention.window": _window(fields), "rope": rope_fields(fields)}
    fields.skip("max_window_layers")  # in this family, all layers have the window
    return shared_fields(fields, kv_heads=4) | own | attention_biases(fields) | _experts(fields)


def _experts(fields: Fields) -> dict[str, Any]:
    """Returns the fields about experts."""
    layers, step = fields.integer("num_hidden_layers"), fields.integer("decoder_sparse_step", 1)
    dense = fields.take("mlp_only_layers", [])
    if not all(isinstance(i, int) for i in dense):
        raise fields.error("mlp_only_layers", "must be the numbers of layers")
    fields.skip("output_router_logits")  # selects outputs of transformers
    every, offset = period([i not in dense and (i + 1) % step == 0 for i in range(layers)]) or (-1, 0)
    if every < 0:
        raise fields.error("mlp_only_layers", "lmjax implements experts in every n-th layer, and here it is not so")
    moe = {
        # The name in newer files, then that in older ones.
        "num_experts": fields.integer("num_local_experts", fields.integer("num_experts", 128)),
        "top_k": fields.integer("num_experts_per_tok", 8),
        "mlp_dim": fields.integer("moe_intermediate_size", 768),
        "every": every,
        "offset": offset,
        "normalize": fields.take("norm_topk_prob", False),
        "balance_weight": fields.number("router_aux_loss_coef", 0.001),
        "z_weight": 0.0,
    }
    if not every:
        raise fields.error("mlp_only_layers", "leaves experts to no layer; such a model is a Qwen 3 without them")
    return {"moe": moe, "scan_layers": every == 1}


def write3_moe(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json of Qwen 3 with experts."""
    moe, layers = config.moe, range(config.num_layers)
    return {
        **shared_json(config),
        **_window_json(config),
        **bias_json(config),
        **rope_json(config.rope),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i in layers if not config.moe.has_experts(i)],
        "num_experts": moe.num_experts,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": config.mlp_dim if moe.mlp_dim is None else moe.mlp_dim,
        "norm_topk_prob": moe.normalize,
        "router_aux_loss_coef": moe.balance_weight,
    }


_HEAD_NORMS = (
    *norm(f"{LAYER}/attention/query_norm", "model.layers.{i}.self_attn.q_norm"),
    *norm(f"{LAYER}/attention/key_norm", "model.layers.{i}.self_attn.k_norm"),
)
_EXPERTS = (
    *linear(f"{LAYER}/moe/router", "model.layers.{i}.mlp.gate"),
    *(
        row
        for name in ("gate", "up", "down")
        for row in experts(f"{LAYER}/moe/{name}", f"model.layers.{{i}}.mlp.experts.{{e}}.{name}_proj")
    ),
)

FAMILIES = {
    # transformers 5 builds Qwen's own byte-level BPE for every Qwen 2 folder, whatever its files contain.
    "qwen2": family("Qwen2", read=read2, write=write2, tokenizer=TokenizerForm(own_pipeline=True)),
    "qwen3": family("Qwen3", read=read3, write=write3, table=(*TABLE, *_HEAD_NORMS)),
    "qwen3_moe": family("Qwen3Moe", read=read3_moe, write=write3_moe, table=(*TABLE, *_HEAD_NORMS, *_EXPERTS)),
}
