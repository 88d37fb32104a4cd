"""Decoders."""

from tests.interop.cases.base import Case

# Small sizes that all differ, so that swapped axes are detected.
DECODER = {
    "vocab_size": 51,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}

NO_HEAD_DIM = {k: v for k, v in DECODER.items() if k != "head_dim"}
NEOX = {k: v for k, v in NO_HEAD_DIM.items() if k != "num_key_value_heads"} | {"num_attention_heads": 3}
OPT = {
    "vocab_size": 51,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "ffn_dim": 40,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
}


def rope(kind: str, length: int, **values: object) -> dict[str, object]:
    """Returns a Llama with scaled rotary positions, some with wavelengths above the original length, some below."""
    parameters = {"rope_type": kind, "rope_theta": 100.0} | values
    return DECODER | {"max_position_embeddings": length, "rope_parameters": parameters}


CASES = {
    "gpt2": Case(
        "GPT2LMHeadModel",
        {"vocab_size": 51, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 12, "n_inner": 40},
    ),
    "llama": Case("LlamaForCausalLM", DECODER),
    "llama_tied_biased": Case(
        "LlamaForCausalLM", DECODER | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    ),
    "llama_classifier": Case("LlamaForSequenceClassification", DECODER | {"num_labels": 3}),
    # Rows of the greatest allowed length; for `dynamic`, longer than the original length.
    "llama_linear": Case("LlamaForCausalLM", rope("linear", 20, factor=2.5), length=20),
    "llama_dynamic": Case("LlamaForCausalLM", rope("dynamic", 8, factor=2.0), length=20),
    "llama_yarn": Case(
        "LlamaForCausalLM",
        rope("yarn", 32, factor=2.0, original_max_position_embeddings=16, beta_fast=0.75, beta_slow=0.125),
        length=24,
    ),
    "llama_llama3": Case(
        "LlamaForCausalLM",
        rope(
            "llama3",
            32,
            factor=4.0,
            original_max_position_embeddings=16,
            low_freq_factor=0.5,
            high_freq_factor=2.0,
        ),
        length=24,
    ),
    # Rows longer than the windows.
    "mistral": Case("MistralForCausalLM", DECODER | {"sliding_window": 5}),
    # Like published embedding models: no output layer, and names without `model.`.
    "mistral_bare": Case("MistralModel", DECODER | {"sliding_window": 5, "num_hidden_layers": 1}),
    "qwen2_bare": Case("Qwen2Model", NO_HEAD_DIM | {"num_hidden_layers": 1, "tie_word_embeddings": True}),
    # Even sizes, because this model is also sharded over a mesh.
    "mixtral": Case(
        "MixtralForCausalLM",
        DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 12} | {"vocab_size": 52},
    ),
    "qwen2": Case(
        "Qwen2ForCausalLM", DECODER | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    ),
    "qwen3": Case("Qwen3ForCausalLM", DECODER),
    "qwen3_moe": Case(
        "Qwen3MoeForCausalLM",
        DECODER
        | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "decoder_sparse_step": 2}
        | {"norm_topk_prob": True, "attention_bias": True},
    ),
    "qwen3_moe_everywhere": Case(
        "Qwen3MoeForCausalLM",
        DECODER
        | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "tie_word_embeddings": True},
    ),
    "gemma": Case("GemmaForCausalLM", DECODER),
    "gemma2": Case(
        "Gemma2ForCausalLM",
        DECODER
        | {"sliding_window": 5, "query_pre_attn_scalar": 20}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": Case(
        "Gemma3ForCausalLM",
        DECODER
        | {"num_hidden_layers": 3, "sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 20}
        | {"rope_theta": 100.0, "rope_local_base_freq": 10.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    # Rows longer than the original length, which have the long factors.
    "phi3_longrope": Case(
        "Phi3ForCausalLM",
        NO_HEAD_DIM
        | {
            "partial_rotary_factor": 1.0,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "short_factor": [1.0, 1.1, 1.2],
                "long_factor": [1.0, 2.0, 3.5],
            },
        },
        length=24,
    ),
    "phi3": Case("Phi3ForCausalLM", NO_HEAD_DIM | {"sliding_window": 5, "partial_rotary_factor": 0.75}),
    "olmo2": Case("Olmo2ForCausalLM", NO_HEAD_DIM),
    "neox": Case("GPTNeoXForCausalLM", NEOX | {"rotary_pct": 0.5}),
    "neox_sequential": Case(
        "GPTNeoXForCausalLM",
        NEOX | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "opt": Case("OPTForCausalLM", OPT),
    "opt_post_norm": Case(
        "OPTForCausalLM",
        OPT | {"do_layer_norm_before": False, "enable_bias": False, "tie_word_embeddings": False},
    ),
    "opt_plain_norm": Case("OPTForCausalLM", OPT | {"layer_norm_elementwise_affine": False}),
}
