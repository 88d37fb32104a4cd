"""Gemma 1, 2 and 3, text only (arXiv:2403.08295, arXiv:2408.00118, arXiv:2503.19786).

Embeddings are multiplied by the square root of the width. As in transformers, this factor is rounded to the model's
dtype: to bfloat16 in a bfloat16 model.
"""

from __future__ import annotations

from typing import Any

from lmjax.interop.families.llama import (
    ATTENTION,
    ENDS,
    FULL,
    MLP,
    WINDOW,
    attention_biases,
    bias_json,
    family,
    layer_types,
    shared_fields,
    shared_json,
    window_fields,
)
from lmjax.interop.fields import GATED, Fields, rope_fields, rope_json, rope_scaling, scaling_json
from lmjax.interop.table import attention, norm
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import LAYER

_TANH = {"gelu_pytorch_tanh": "geglu_new", "gelu_new": "geglu_new"}
_LATER = _TANH | GATED
_GEMMA = {"norm_offset": True, "embedding.scale": True}


def read1(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig of Gemma 1."""
    # Early files have `gelu` for its tanh approximation.
    activations = _TANH | {"gelu": "geglu_new"}
    fields.choose("hidden_activation", _TANH | {None: None}, None)
    fields.expect(use_bidirectional_attention=False)
    shared = shared_fields(fields, kv_heads=16, head_dim=256, tied=True, activations=activations)
    return shared | _GEMMA | attention_biases(fields) | {"rope": rope_fields(fields)}


def write1(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json of Gemma 1."""
    return shared_json(config) | bias_json(config) | rope_json(config.rope)


def _read_later(fields: Fields, every: int, attention_cap: float | None, logit_cap: float | None) -> dict[str, Any]:
    """Returns the fields that Gemma 2 and 3 have in common.

    Args:
        fields: of the model.
        every: by default, every layer has a window except each `every`-th one.
        attention_cap: default softcap of the attention scores.
        logit_cap: default softcap of the logits.
    """
    fields.expect(use_bidirectional_attention=False)
    # Duplicates of other fields in early files, and the kind of the cache.
    fields.skip("hidden_act", "sliding_window_size", "cache_implementation")
    shared = shared_fields(
        fields, kv_heads=4, head_dim=256, tied=True, activation="hidden_activation", activations=_LATER
    )
    scalar = fields.number("query_pre_attn_scalar", 256.0)
    if not scalar > 0:
        raise fields.error("query_pre_attn_scalar", "must be positive")
    window = None if fields.is_null("sliding_window") else fields.integer("sliding_window", 4096)
    types = [WINDOW if (i + 1) % every else FULL for i in range(shared["num_layers"])]
    caps = {"attention.softcap": ("attn", attention_cap), "head.softcap": ("final", logit_cap)}
    return {
        **shared,
        **_GEMMA,
        **attention_biases(fields),
        **window_fields(fields, window, types),
        **{ours: _cap(fields, f"{theirs}_logit_softcapping", cap) for ours, (theirs, cap) in caps.items()},
        "norm_position": "sandwich",
        "attention.scale": scalar**-0.5,
    }


def _cap(fields: Fields, name: str, default: float | None) -> float | None:
    return None if fields.is_null(name) else fields.number(name, default)


def _write_later(config: ModelConfig) -> dict[str, Any]:
    """Returns fields of config.json; the inverse of `_read_later`."""
    scalar = config.score_scale**-2
    return {
        **shared_json(config, "hidden_activation"),
        **bias_json(config),
        "sliding_window": config.attention.window,
        "layer_types": layer_types(config),
        "attn_logit_softcapping": config.attention.softcap,
        "final_logit_softcapping": config.head.softcap,
        # Their value is an integer: rounding removes the error of taking the root and the square.
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-9 * scalar else scalar,
    }


def read2(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig of Gemma 2."""
    return _read_later(fields, 2, 50.0, 30.0) | {"rope": rope_fields(fields)}


def write2(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json of Gemma 2."""
    return _write_later(config) | rope_json(config.rope)


def read3(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig of Gemma 3."""
    every = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", 6))
    values = _read_later(fields, every, None, None) | {"attention.qk_norm": "head"}
    rope, local = _ropes(fields)
    if local["scaling"] != "none":
        raise fields.error("rope_parameters", f"lmjax scales the layers without a window alone, not {WINDOW!r}")
    if "attention.window" in values:
        rope["local_theta"] = local["theta"]
    return values | {"rope": rope}


def _ropes(fields: Fields) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the fields of two RopeConfigs: of layers without a window, and of those with one."""
    names = {FULL: "rope_theta", WINDOW: "rope_local_base_freq"}
    bases = {FULL: fields.number(names[FULL], 1e6), WINDOW: fields.number(names[WINDOW], 10_000.0)}
    length = fields.integer("max_position_embeddings")

    def values(kind: str, group: Fields | None) -> dict[str, Any]:
        plain = {"theta": bases[kind], "scaling": "none"}
        if group is None:
            return plain
        found = plain | rope_scaling(group, bases[kind], length)
        fields.agree(names[kind], found["theta"])
        return found

    both, scaling = fields.group("rope_parameters"), fields.group("rope_scaling")
    if both is None:
        return values(FULL, scaling), values(WINDOW, None)
    full, near = (values(kind, both.group(kind)) for kind in (FULL, WINDOW))
    both.finish()
    # transformers 4 reads `rope_scaling`; transformers 5 merges it into `rope_parameters`.
    if scaling is not None and values(FULL, scaling) != full:
        raise fields.error("rope_scaling", "is not what rope_parameters says; remove one of them")
    return full, near


def write3(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json of Gemma 3."""
    rope = config.rope
    local = rope.theta if rope.local_theta is None else rope.local_theta
    full = {"rope_theta": rope.theta} | scaling_json(rope)
    return _write_later(config) | {
        "rope_theta": rope.theta,
        "rope_local_base_freq": local,
        "rope_scaling": None if rope.scaling == "none" else full,
        "rope_parameters": {FULL: full, WINDOW: {"rope_theta": local, "rope_type": "default"}},
    }


_BLOCK, _ATTENTION = "model.layers.{i}", f"{LAYER}/attention"
_SANDWICH = (
    *ENDS,
    *attention(_ATTENTION, f"{_BLOCK}.self_attn.", ATTENTION),
    *norm(f"{LAYER}/attention_norm", f"{_BLOCK}.input_layernorm"),
    *norm(f"{LAYER}/attention_output_norm", f"{_BLOCK}.post_attention_layernorm"),
    *norm(f"{LAYER}/mlp_norm", f"{_BLOCK}.pre_feedforward_layernorm"),
    *norm(f"{LAYER}/mlp_output_norm", f"{_BLOCK}.post_feedforward_layernorm"),
    *MLP,
)
_HEAD_NORMS = (
    *norm(f"{_ATTENTION}/query_norm", f"{_BLOCK}.self_attn.q_norm"),
    *norm(f"{_ATTENTION}/key_norm", f"{_BLOCK}.self_attn.k_norm"),
)

FAMILIES = {
    "gemma": family("Gemma", read=read1, write=write1),
    "gemma2": family("Gemma2", read=read2, write=write2, table=_SANDWICH),
    "gemma3_text": family(
        "Gemma3",
        read=read3,
        write=write3,
        table=(*_SANDWICH, *_HEAD_NORMS),
        heads={"Gemma3ForCausalLM": (), "Gemma3TextForSequenceClassification": ("classifier",)},
        bare=("Gemma3TextModel",),
    ),
}
