"""OLMo 2 (OLMo team 2024, arXiv:2501.00656)."""

from __future__ import annotations

from typing import Any

from lmjax.interop.families.llama import (
    ATTENTION,
    ENDS,
    MLP,
    attention_biases,
    bias_json,
    family,
    shared_fields,
    shared_json,
)
from lmjax.interop.fields import Fields, rope_fields, rope_json
from lmjax.interop.table import attention, norm
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import LAYER


def read(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig."""
    norms = {"norm_position": "output", "attention.qk_norm": "full"}
    return shared_fields(fields, epsilon=1e-5) | norms | attention_biases(fields) | {"rope": rope_fields(fields)}


def write(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json."""
    return shared_json(config) | bias_json(config) | rope_json(config.rope)


_BLOCK = "model.layers.{i}"

FAMILIES = {
    "olmo2": family(
        "Olmo2",
        read=read,
        write=write,
        table=(
            *ENDS,
            *attention(f"{LAYER}/attention", f"{_BLOCK}.self_attn.", ATTENTION),
            *norm(f"{LAYER}/attention/query_norm", f"{_BLOCK}.self_attn.q_norm"),
            *norm(f"{LAYER}/attention/key_norm", f"{_BLOCK}.self_attn.k_norm"),
            *norm(f"{LAYER}/attention_output_norm", f"{_BLOCK}.post_attention_layernorm"),
            *norm(f"{LAYER}/mlp_output_norm", f"{_BLOCK}.post_feedforward_layernorm"),
            *MLP,
        ),
    )
}
