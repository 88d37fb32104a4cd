"""Encoder-decoders.

The counts are transformers' own, without the tables of sines that its Marian and Pegasus count among their parameters.
"""

from typing import Any

_T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}
_V1_1 = _T5 | {
    "feed_forward_proj": "gated-gelu",
    "output_past": True,
    "tie_word_embeddings": False,
    "use_cache": True,
}
_T5_SMALL = {"d_ff": 2048, "d_kv": 64, "d_model": 512, "n_positions": 512, "num_heads": 8, "num_layers": 6}
_FLAN_BASE = {"d_ff": 2048, "d_kv": 64, "d_model": 768, "num_decoder_layers": 12, "num_heads": 12, "num_layers": 12}
_MT5_SMALL = {"d_ff": 1024, "d_kv": 64, "d_model": 512, "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8}
_BART = {
    "activation_function": "gelu",
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "attention_dropout": 0.1,
    "bos_token_id": 0,
    "classifier_dropout": 0.0,
    "decoder_layerdrop": 0.0,
    "decoder_start_token_id": 2,
    "dropout": 0.1,
    "encoder_layerdrop": 0.0,
    "eos_token_id": 2,
    "forced_eos_token_id": 2,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
    "init_std": 0.02,
    "is_encoder_decoder": True,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
    "model_type": "bart",
    "normalize_before": False,
    "pad_token_id": 1,
    "scale_embedding": False,
}


def _sizes(d_model: int, layers: int, heads: int, ffn: int, **others: Any) -> dict[str, Any]:
    """Returns the fields of both sides' size."""
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", layers), ("attention_heads", heads), ("ffn_dim", ffn))
    }
    return {"d_model": d_model, "num_hidden_layers": layers, **sides, **others}


PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "google-t5/t5-small": (_T5 | _T5_SMALL | {"output_past": True}, 60_506_624),
    "google/flan-t5-base": (
        _V1_1 | _FLAN_BASE | {"n_positions": 512, "relative_attention_max_distance": 128},
        247_577_856,
    ),
    "google/mt5-small": (
        _V1_1
        | _MT5_SMALL
        | {
            "architectures": ["MT5ForConditionalGeneration"],
            "model_type": "mt5",
            "tokenizer_class": "T5Tokenizer",
            "vocab_size": 250112,
        },
        300_176_768,
    ),
    "google/umt5-small": (
        _V1_1
        | _MT5_SMALL
        | {
            "architectures": ["UMT5ForConditionalGeneration"],
            "classifier_dropout": 0.0,
            "dense_act_fn": "gelu_new",
            "is_gated_act": True,
            "model_type": "umt5",
            "relative_attention_max_distance": 128,
            "scalable_attention": True,
            "tokenizer_class": "T5Tokenizer",
            "vocab_size": 256384,
        },
        306_601_984,
    ),
    "facebook/bart-base": (
        _BART
        | _sizes(768, 6, 12, 3072, vocab_size=50265, max_position_embeddings=1024)
        | {
            "activation_dropout": 0.1,
            "architectures": ["BartModel"],
            "classif_dropout": 0.1,
            "early_stopping": True,
            "gradient_checkpointing": False,
            "no_repeat_ngram_size": 3,
            "normalize_embedding": True,
            "num_beams": 4,
        },
        139_420_416,
    ),
    "facebook/bart-large-cnn": (
        _BART
        | _sizes(1024, 12, 16, 4096, vocab_size=50264, max_position_embeddings=1024)
        | {
            "_num_labels": 3,
            "activation_dropout": 0.0,
            "architectures": ["BartForConditionalGeneration"],
            "attention_dropout": 0.0,
            "force_bos_token_to_be_generated": True,
            "length_penalty": 2.0,
            "max_length": 142,
            "min_length": 56,
            "output_past": True,
            "prefix": " ",
        },
        406_290_432,
    ),
    "facebook/mbart-large-cc25": (
        _BART
        | _sizes(1024, 12, 16, 4096, vocab_size=250027, max_position_embeddings=1024)
        | {
            "activation_dropout": 0.0,
            "add_final_layer_norm": True,
            "architectures": ["MBartForConditionalGeneration"],
            "attention_dropout": 0.0,
            "model_type": "mbart",
            "normalize_before": True,
            "normalize_embedding": True,
            "scale_embedding": True,
            "static_position_embeddings": False,
        },
        610_851_840,
    ),
    "Helsinki-NLP/opus-mt-en-de": (
        _BART
        | _sizes(512, 6, 8, 2048, vocab_size=58101, max_position_embeddings=512)
        | {
            "activation_dropout": 0.0,
            "activation_function": "swish",
            "architectures": ["MarianMTModel"],
            "attention_dropout": 0.0,
            "bad_words_ids": [[58100]],
            "decoder_start_token_id": 58100,
            "eos_token_id": 0,
            "model_type": "marian",
            "normalize_embedding": False,
            "num_beams": 6,
            "pad_token_id": 58100,
            "scale_embedding": True,
            "static_position_embeddings": True,
        },
        73_886_208,
    ),
    "google/pegasus-xsum": (
        _BART
        | _sizes(1024, 16, 16, 4096, vocab_size=96103, max_position_embeddings=512)
        | {
            "activation_dropout": 0.1,
            "activation_function": "relu",
            "add_final_layer_norm": True,
            "architectures": ["PegasusForConditionalGeneration"],
            "decoder_start_token_id": 0,
            "eos_token_id": 1,
            "extra_pos_embeddings": 1,
            "length_penalty": 0.6,
            "model_type": "pegasus",
            "normalize_before": True,
            "normalize_embedding": False,
            "num_beams": 8,
            "pad_token_id": 0,
            "scale_embedding": True,
            "static_position_embeddings": True,
        },
        568_699_904,
    ),
}
