"""ModernBERT (Warner et al. 2024, arXiv:2412.13663)."""

from __future__ import annotations

from typing import Any

from lmjax.interop.families.llama import FULL, WINDOW, layer_types, window_fields
from lmjax.interop.fields import GATED, Fields
from lmjax.interop.table import ENCODER, Family, linear, norm, tensor
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import INPUTS, LAYER, STACK

_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu", "geglu_new": "gelu_pytorch_tanh", "reglu": "relu"}


def _windows(fields: Fields) -> dict[str, Any]:
    """Returns the fields about windows; in `local_attention`, half of the tokens are on each side of the query."""
    side = fields.integer("local_attention", 128) // 2
    every = fields.integer("global_attn_every_n_layers", 3)
    default = [WINDOW if i % every else FULL for i in range(fields.integer("num_hidden_layers", 22))]
    return window_fields(fields, side + 1, default)


def _rope(fields: Fields, *, windows: bool) -> dict[str, Any]:
    """Returns the fields of a RopeConfig, from `rope_parameters` for each kind of layer or from the two bases."""
    fields.expect(rope_scaling=None)
    kinds = fields.group("rope_parameters")
    bases = []
    for kind, old, default in ((FULL, "global_rope_theta", 160_000.0), (WINDOW, "local_rope_theta", 10_000.0)):
        # The second base may be null, and then equals the first.
        base = bases[0] if bases and fields.is_null(old) else fields.number(old, default)
        if kinds is not None and (own := kinds.group(kind)) is not None:
            own.expect(rope_type="default")
            base = own.number("rope_theta", base)
            fields.agree(old, base)
            own.finish()
        bases.append(base)
    if kinds is not None:
        kinds.finish()
    return {"theta": bases[0], "local_theta": bases[1] if windows and bases[1] != bases[0] else None}


def _biases(fields: Fields) -> tuple[str, ...]:
    """Returns the kinds of layers with a bias."""
    named = {
        "attention_bias": ("query", "key", "value", "out"),
        "mlp_bias": ("up", "gate", "down"),
        "norm_bias": ("norm",),
    }
    biases = tuple(layer for field, layers in named.items() if fields.take(field, False) for layer in layers)
    # In lmjax, the layers of heads have a bias if any other layer has one.
    fields.choose("classifier_bias", {bool(biases): True}, False)
    return biases


def read(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig."""
    activation = fields.take("hidden_activation", "gelu")
    windows = _windows(fields)
    # The choice of kernels, options of a trainer, and the truncation of the initial weights.
    fields.skip("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad", "initializer_cutoff_factor")
    fields.skip("sparse_prediction", "sparse_pred_ignore_index")
    # Fields of BERT that remain in the published files; transformers reads norm_eps and uses rotary positions.
    fields.skip("layer_norm_eps", "position_embedding_type")
    fields.choose("classifier_activation", {activation: activation}, "gelu")
    return windows | {
        "architecture": "encoder",
        "vocab_size": fields.integer("vocab_size", 50_368),
        "embed_dim": fields.integer("hidden_size", 768),
        "num_layers": fields.integer("num_hidden_layers", 22),
        "num_heads": fields.integer("num_attention_heads", 12),
        "mlp_dim": fields.integer("intermediate_size", 1152),
        "max_length": fields.integer("max_position_embeddings", 8192),
        "norm_epsilon": fields.number("norm_eps", 1e-5),
        "first_norm": False,
        "embedding.norm": True,
        "biases": _biases(fields),
        "mlp": fields.choose("hidden_activation", GATED, "gelu"),
        "positions": "rope",
        "rope": _rope(fields, windows=bool(windows)),
        "head.tied": fields.take("tie_word_embeddings", True),
        "head.bias": fields.take("decoder_bias", True),
        "head.transform": True,
        "head.classifier": "transform",
        "head.pooling": fields.choose("classifier_pooling", {"cls": "first", "mean": "mean"}, "cls"),
        "initializer": "truncated_normal",
        "init_std": fields.number("initializer_range", 0.02),
        "dropout.residual": fields.number("embedding_dropout", 0.0),
        "dropout.attention": fields.number("attention_dropout", 0.0),
        "dropout.mlp": fields.number("mlp_dropout", 0.0),
        "scan_layers": False,
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json."""
    activation = _ACTIVATIONS.get(config.mlp, config.mlp)
    windows, bases = config.attention.window is not None, {"global_rope_theta": config.rope.theta}
    if windows:
        bases["local_rope_theta"] = config.rope.theta if config.rope.local_theta is None else config.rope.local_theta
    return bases | {
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        "norm_eps": config.norm_epsilon,
        "attention_bias": "query" in config.biases,
        "mlp_bias": "up" in config.biases,
        "norm_bias": "norm" in config.biases,
        "classifier_bias": bool(config.biases),
        "hidden_activation": activation,
        "classifier_activation": activation,
        "classifier_pooling": {"first": "cls"}.get(config.head.pooling, config.head.pooling),
        "layer_types": layer_types(config),
        "local_attention": 2 * (config.attention.window - 1) if windows else 128,
        "tie_word_embeddings": config.head.tied,
        "decoder_bias": config.head.bias,
        "initializer_range": config.init_std,
        "embedding_dropout": config.dropout.residual,
        "attention_dropout": config.dropout.attention,
        "mlp_dropout": config.dropout.mlp,
    }


_QKV = tuple(f"{LAYER}/attention/{x}" for x in ("query", "key", "value"))
_LABELLED = ("classifier", "tagger", "span", "choice")
_TRANSFORMS = ("transform", *(f"{head}_head/transform" for head in _LABELLED))
_LABELS = tuple(f"{head}_head/classifier" for head in _LABELLED)

FAMILIES = {
    "modernbert": Family(
        read=read,
        write=write,
        table=(
            *tensor("embedding/table", "model.embeddings.tok_embeddings.weight"),
            *norm(f"{INPUTS}/norm", "model.embeddings.norm"),
            *linear(_QKV, "model.layers.{i}.attn.Wqkv"),
            *linear(f"{LAYER}/attention/out", "model.layers.{i}.attn.Wo", inputs=2),
            *norm(f"{LAYER}/attention_norm", "model.layers.{i}.attn_norm"),
            *norm(f"{LAYER}/mlp_norm", "model.layers.{i}.mlp_norm"),
            *linear((f"{LAYER}/mlp/gate", f"{LAYER}/mlp/up"), "model.layers.{i}.mlp.Wi"),
            *linear(f"{LAYER}/mlp/down", "model.layers.{i}.mlp.Wo"),
            *norm(f"{STACK}/final_norm", "model.final_norm"),
            *(row for path in _TRANSFORMS for row in linear(f"{path}/dense", "head.dense")),
            *(row for path in _TRANSFORMS for row in norm(f"{path}/norm", "head.norm")),
            *(row for path in _LABELS for row in linear(path, "classifier")),
            *linear("output", "decoder"),
            *tensor("output_bias", "decoder.bias"),
        ),
        heads={
            "ModernBertForMaskedLM": ("masked_lm",),
            "ModernBertForSequenceClassification": ("classifier",),
            "ModernBertForTokenClassification": ("tagger",),
            "ModernBertForQuestionAnswering": ("span",),
            "ModernBertForMultipleChoice": ("choice",),
        },
        base="model.",
        bare=("ModernBertModel",),
        tokenizer=ENCODER,
        copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
        ignored=("*rotary_emb*.inv_freq",),
    )
}
