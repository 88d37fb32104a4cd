"""Mistral (Jiang et al. 2023, arXiv:2310.06825) and Mixtral (Jiang et al. 2024, arXiv:2401.04088)."""

from __future__ import annotations

from typing import Any

from lmjax.interop.families.llama import (
    ATTENTION,
    ENDS,
    NORMS,
    family,
    shared_fields,
    shared_json,
)
from lmjax.interop.fields import Fields, rope_fields, rope_json
from lmjax.interop.table import attention, experts, linear
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import LAYER


def _window(fields: Fields, default: int | None) -> int | None:
    return None if fields.is_null("sliding_window") else fields.integer("sliding_window", default)


def read(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig."""
    window = {"attention.window": _window(fields, 4096)}
    return shared_fields(fields, kv_heads=8) | window | {"biases": (), "rope": rope_fields(fields)}


def write(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json."""
    return shared_json(config) | {"sliding_window": config.attention.window} | rope_json(config.rope)


def read_moe(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig with experts."""
    fields.expect(router_jitter_noise=0.0)
    fields.skip("output_router_logits")  # selects outputs of transformers
    moe = {
        "num_experts": fields.integer("num_local_experts", 8),
        "top_k": fields.integer("num_experts_per_tok", 2),
        "normalize": True,
        "balance_weight": fields.number("router_aux_loss_coef", 0.001),
        "z_weight": 0.0,
    }
    rope = rope_fields(fields, theta=1e6)
    others = {"attention.window": _window(fields, None), "biases": (), "rope": rope, "moe": moe}
    return shared_fields(fields, kv_heads=8, epsilon=1e-5) | others


def write_moe(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json of a model with experts."""
    return write(config) | {
        "intermediate_size": config.mlp_dim if config.moe.mlp_dim is None else config.moe.mlp_dim,
        "num_local_experts": config.moe.num_experts,
        "num_experts_per_tok": config.moe.top_k,
        "router_aux_loss_coef": config.moe.balance_weight,
    }


_EXPERTS, _THEIRS = f"{LAYER}/moe", "model.layers.{i}.block_sparse_moe"

FAMILIES = {
    "mistral": family("Mistral", read=read, write=write),
    "mixtral": family(
        "Mixtral",
        read=read_moe,
        write=write_moe,
        table=(
            *ENDS,
            *attention(f"{LAYER}/attention", "model.layers.{i}.self_attn.", ATTENTION),
            *NORMS,
            *linear(f"{_EXPERTS}/router", f"{_THEIRS}.gate"),
            *experts(f"{_EXPERTS}/gate", f"{_THEIRS}.experts.{{e}}.w1"),
            *experts(f"{_EXPERTS}/down", f"{_THEIRS}.experts.{{e}}.w2"),
            *experts(f"{_EXPERTS}/up", f"{_THEIRS}.experts.{{e}}.w3"),
        ),
    ),
}
