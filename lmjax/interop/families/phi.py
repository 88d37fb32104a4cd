"""Phi-3 and Phi-4-mini (Abdin et al. 2024, arXiv:2404.14219)."""

from __future__ import annotations

from typing import Any

from lmjax.interop.families.llama import ENDS, NORMS, family, shared_fields, shared_json
from lmjax.interop.fields import Fields, rope_fields, rope_json
from lmjax.interop.table import linear
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import LAYER


def read(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig."""
    original = fields.integer("original_max_position_embeddings", 4096)
    rope = rope_fields(fields, fraction=fields.number("partial_rotary_factor", 1.0), original_length=original)
    if rope.get("scaling", "none") not in ("none", "longrope"):
        raise fields.error("rope_scaling", "of Phi-3, lmjax and transformers implement longrope alone")
    fields.expect(attention_bias=False, mlp_bias=False, lm_head_bias=False, full_attn_mod=1)
    fields.skip("interpolate_factor")
    return shared_fields(fields, epsilon=1e-5) | {
        "attention.window": None if fields.is_null("sliding_window") else fields.integer("sliding_window", None),
        "biases": (),
        "rope": rope,
        # lmjax has one rate for embeddings and residual branches.
        "dropout.residual": max(fields.number("resid_pdrop", 0.0), fields.number("embd_pdrop", 0.0)),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json."""
    return {
        **shared_json(config),
        **rope_json(config.rope, fraction=True),
        "partial_rotary_factor": config.rope.fraction,
        "original_max_position_embeddings": config.rope.original_length or config.max_length,
        "sliding_window": config.attention.window,
        "resid_pdrop": config.dropout.residual,
        "embd_pdrop": config.dropout.residual,
    }


_BLOCK = "model.layers.{i}"
_QKV = tuple(f"{LAYER}/attention/{name}" for name in ("query", "key", "value"))

FAMILIES = {
    "phi3": family(
        "Phi3",
        read=read,
        write=write,
        table=(
            *ENDS,
            *linear(_QKV, f"{_BLOCK}.self_attn.qkv_proj"),
            *linear(f"{LAYER}/attention/out", f"{_BLOCK}.self_attn.o_proj", inputs=2),
            *NORMS,
            *linear((f"{LAYER}/mlp/gate", f"{LAYER}/mlp/up"), f"{_BLOCK}.mlp.gate_up_proj"),
            *linear(f"{LAYER}/mlp/down", f"{_BLOCK}.mlp.down_proj"),
        ),
    )
}
