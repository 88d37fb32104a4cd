"""Llama 2 and 3 (Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024, arXiv:2407.21783), and SmolLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.interop.fields import GATED, Fields, rope_fields, rope_json
from lmjax.interop.table import Family, Row, attention, linear, norm, tensor
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import LAYER, STACK

WINDOW, FULL = "sliding_attention", "full_attention"
_LENGTH = 2048  # the default length of rows in Llama's files
_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu", "geglu_new": "gelu_pytorch_tanh", "reglu": "relu"}


def shared_fields(
    fields: Fields,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    epsilon: float = 1e-6,
    activation: str = "hidden_act",
    activations: Mapping[str, str] = GATED,
    tied: bool = False,
    length: int | None = None,
) -> dict[str, Any]:
    """Returns the fields that decoders with a config.json like Llama's have in common: all but biases, RoPE, windows.

    Args:
        fields: of the model.
        kv_heads: default number of key and value heads; None: as many as query heads.
        head_dim: default width of a head; None: hidden_size divided by the number of heads.
        epsilon: default epsilon of the norms.
        activation: name of the field with the activation.
        activations: our activation for each possible value.
        tied: whether the output head is tied to the embedding table by default.
        length: default length of rows; None: the file must have it.
    """
    length = fields.integer("max_position_embeddings", *([] if length is None else [length]))
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    kv_heads = heads if fields.is_null("num_key_value_heads") or kv_heads is None else kv_heads
    head_dim = width // heads if fields.is_null("head_dim") or head_dim is None else head_dim
    return {
        "architecture": "decoder",
        "vocab_size": fields.integer("vocab_size"),
        "embed_dim": width,
        "num_layers": fields.integer("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": fields.integer("num_key_value_heads", kv_heads),
        "head_dim": fields.integer("head_dim", head_dim),
        "mlp_dim": fields.integer("intermediate_size"),
        "max_length": length,
        "norm": "rmsnorm",
        "norm_epsilon": fields.number("rms_norm_eps", epsilon),
        "mlp": fields.choose(activation, activations, next(iter(activations))),
        "positions": "rope",
        "head.tied": fields.take("tie_word_embeddings", tied),
        "dropout.attention": fields.number("attention_dropout", 0.0),
        "init_std": fields.number("initializer_range", 0.02),
    }


def shared_json(config: ModelConfig, activation: str = "hidden_act") -> dict[str, Any]:
    """Returns fields of config.json; the inverse of `shared_fields`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.width_of_head,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        activation: _ACTIVATIONS.get(config.mlp, config.mlp),
        "tie_word_embeddings": config.head.tied,
        "attention_dropout": config.dropout.attention,
        "initializer_range": config.init_std,
    }


def attention_biases(fields: Fields) -> dict[str, Any]:
    """Returns the biases of models in which all attention projections have one, or no layer has."""
    return {"biases": ("query", "key", "value", "out") if fields.take("attention_bias", False) else ()}


def bias_json(config: ModelConfig) -> dict[str, Any]:
    """Returns fields of config.json; the inverse of `attention_biases`."""
    return {"attention_bias": "query" in config.biases}


def window_fields(fields: Fields, window: int | None, default: Sequence[str]) -> dict[str, Any]:
    """Returns the fields about windows, from `layer_types`.

    Args:
        fields: of the model.
        window: keys that a query attends to in a layer with a window, its own included; None: no layer has a window.
        default: the types if the file has none.
    """
    types = fields.take("layer_types", list(default))
    if len(types) != len(default) or not all(kind in (WINDOW, FULL) for kind in types):
        raise fields.error("layer_types", f"must be {WINDOW!r} or {FULL!r} for each of {len(default)} layers")
    everywhere = [kind == FULL for kind in types]
    if all(everywhere):
        return {}
    if window is None:
        raise fields.error("layer_types", f"names layers with {WINDOW!r}, and there is no sliding_window")
    every, offset = period(everywhere) or (-1, 0)
    if every < 0:
        raise fields.error("layer_types", f"lmjax implements {FULL!r} in every n-th layer, and here it is not so")
    return {"attention.window": window, "attention.global_every": every, "attention.global_offset": offset}


def layer_types(config: ModelConfig) -> list[str]:
    """Returns the `layer_types` of a model; the inverse of `window_fields`."""
    return [FULL if config.attention.is_global(i) else WINDOW for i in range(config.num_layers)]


def period(chosen: Sequence[bool]) -> tuple[int, int] | None:
    """Returns the least n and the offset such that exactly every n-th layer is chosen.

    (0, 0): no layer is chosen; None: the chosen layers are not periodic.
    """
    if not any(chosen):
        return 0, 0
    offset = list(chosen).index(True)
    for every in range(offset + 1, len(chosen) + 1):
        if all(is_chosen == (i % every == offset) for i, is_chosen in enumerate(chosen)):
            return every, offset
    return None


def read(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig."""
    biases = attention_biases(fields)["biases"]
    biases += ("up", "gate", "down") if fields.take("mlp_bias", False) else ()
    # pretraining_tp only changes the order of sums in matrix products; is_llama_config marks converted files.
    fields.skip("pretraining_tp", "is_llama_config")
    fields.expect(rope_interleaved=False)
    # Early files also have the length under this name, which transformers does not read.
    fields.expect(max_sequence_length=fields.integer("max_position_embeddings", _LENGTH))
    return shared_fields(fields, length=_LENGTH) | {"biases": biases, "rope": rope_fields(fields, length=_LENGTH)}


def write(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json."""
    biases = bias_json(config) | {"mlp_bias": "up" in config.biases}
    return shared_json(config) | biases | rope_json(config.rope)


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ENDS: tuple[Row, ...] = (
    *tensor("embedding/table", "model.embed_tokens.weight"),
    *norm(f"{STACK}/final_norm", "model.norm"),
    *linear("output", "lm_head"),
    *linear("classifier_head/classifier", "score"),
)
NORMS: tuple[Row, ...] = (
    *norm(f"{LAYER}/attention_norm", "model.layers.{i}.input_layernorm"),
    *norm(f"{LAYER}/mlp_norm", "model.layers.{i}.post_attention_layernorm"),
)
MLP: tuple[Row, ...] = (
    *linear(f"{LAYER}/mlp/up", "model.layers.{i}.mlp.up_proj"),
    *linear(f"{LAYER}/mlp/gate", "model.layers.{i}.mlp.gate_proj"),
    *linear(f"{LAYER}/mlp/down", "model.layers.{i}.mlp.down_proj"),
)
TABLE: tuple[Row, ...] = (
    *ENDS,
    *attention(f"{LAYER}/attention", "model.layers.{i}.self_attn.", ATTENTION),
    *NORMS,
    *MLP,
)


def family(name: str, **others: Any) -> Family:
    """Returns a family of decoders with class names that begin with `name`; `others` replace Llama's fields."""
    values: dict[str, Any] = {
        "read": read,
        "write": write,
        "table": TABLE,
        "heads": {f"{name}ForCausalLM": (), f"{name}ForSequenceClassification": ("classifier",)},
        "bare": (f"{name}Model",),
        "base": "model.",
        "copies": {"lm_head.weight": "model.embed_tokens.weight"},
        "ignored": ("*rotary_emb*.inv_freq",),
    }
    return Family(**(values | others))


FAMILIES = {"llama": family("Llama")}
