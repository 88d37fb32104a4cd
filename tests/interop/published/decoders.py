"""Decoders."""

from typing import Any

# What those who follow Llama have in common here.
COMMON = {"hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True}
LLAMA = COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
}
LLAMA_3 = {
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
    "max_position_embeddings": 131_072,
    "mlp_bias": False,
    "rope_theta": 500_000.0,
    "vocab_size": 128_256,
    "num_key_value_heads": 8,
    "num_attention_heads": 32,
}
LLAMA_3_SCALING = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "rotary_emb_base": 10_000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50_304,
}
MISTRAL = COMMON | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN_2 = COMMON | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "bos_token_id": 151_643,
    "eos_token_id": 151_643,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
}
QWEN_3 = COMMON | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1_000_000,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151_936,
}
GEMMA = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "head_dim": 256,
    "initializer_range": 0.02,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 256_000,
}
GEMMA_1 = GEMMA | {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_act": "gelu"}
GEMMA_2 = GEMMA | {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
OLMO_2 = COMMON | {
    "architectures": ["Olmo2ForCausalLM"],
    "model_type": "olmo2",
    "attention_bias": False,
    "eos_token_id": 100_257,
    "pad_token_id": 100_277,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 500_000,
    "tie_word_embeddings": False,
    "vocab_size": 100_352,
}


def sizes(width: int, mlp: int, layers: int, heads: int, kv_heads: int | None = None) -> dict[str, int]:
    """Returns the sizes of a model, as almost all families call them."""
    values = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads}
    return values if kv_heads is None else values | {"num_key_value_heads": kv_heads}


PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": (
        {
            "activation_function": "gelu_new",
            "architectures": ["GPT2LMHeadModel"],
            "attn_pdrop": 0.1,
            "bos_token_id": 50_256,
            "embd_pdrop": 0.1,
            "eos_token_id": 50_256,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-5,
            "model_type": "gpt2",
            "n_ctx": 1024,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "resid_pdrop": 0.1,
            "summary_activation": None,
            "summary_first_dropout": 0.1,
            "summary_proj_to_labels": True,
            "summary_type": "cls_index",
            "summary_use_proj": True,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
            "vocab_size": 50_257,
        },
        124_439_808,
    ),
    "pythia-70m": (PYTHIA | sizes(512, 2048, 6, 8), 70_426_624),
    "pythia-1.4b": (PYTHIA | sizes(2048, 8192, 24, 16), 1_414_647_808),
    "gpt-neox-20b": (
        PYTHIA
        | sizes(6144, 24_576, 44, 64)
        | {
            "vocab_size": 50_432,
            "hidden_act": "gelu_fast",
            "attention_probs_dropout_prob": 0,
            "hidden_dropout_prob": 0,
        },
        20_554_567_680,
    ),
    "opt-125m": (
        {
            "_name_or_path": "facebook/opt-125m",
            "_remove_final_layer_norm": False,
            "activation_dropout": 0.0,
            "activation_function": "relu",
            "architectures": ["OPTForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 2,
            "do_layer_norm_before": True,
            "dropout": 0.1,
            "eos_token_id": 2,
            "ffn_dim": 3072,
            "hidden_size": 768,
            "init_std": 0.02,
            "layerdrop": 0.0,
            "max_position_embeddings": 2048,
            "model_type": "opt",
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "pad_token_id": 1,
            "prefix": "</s>",
            "torch_dtype": "float16",
            "use_cache": True,
            "vocab_size": 50_272,
            "word_embed_proj_dim": 768,
        },
        125_239_296,
    ),
    "llama-2-7b": (
        LLAMA | sizes(4096, 11_008, 32, 32, 32) | {"vocab_size": 32_000, "max_position_embeddings": 4096},
        6_738_415_616,
    ),
    "llama-3.1-8b": (
        LLAMA | LLAMA_3 | sizes(4096, 14_336, 32, 32, 8) | {"rope_scaling": LLAMA_3_SCALING | {"factor": 8.0}},
        8_030_261_248,
    ),
    "llama-3.2-1b": (
        LLAMA
        | LLAMA_3
        | sizes(2048, 8192, 16, 32, 8)
        | {"head_dim": 64, "tie_word_embeddings": True, "rope_scaling": LLAMA_3_SCALING | {"factor": 32.0}},
        1_235_814_400,
    ),
    "smollm2-135m": (
        LLAMA
        | sizes(576, 1536, 30, 9, 3)
        | {"is_llama_config": True, "rope_interleaved": False, "rope_theta": 100_000, "tie_word_embeddings": True}
        | {"initializer_range": 0.041666666666666664, "max_position_embeddings": 8192, "vocab_size": 49_152},
        134_515_008,
    ),
    "mistral-7b-v0.1": (
        MISTRAL | {"rope_theta": 10_000.0, "sliding_window": 4096, "vocab_size": 32_000},
        7_241_732_096,
    ),
    "mistral-7b-v0.3": (
        MISTRAL | {"rope_theta": 1_000_000.0, "sliding_window": None, "vocab_size": 32_768},
        7_248_023_552,
    ),
    "mixtral-8x7b": (
        MISTRAL
        | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 32_000}
        | {"num_experts_per_tok": 2, "num_local_experts": 8, "output_router_logits": False}
        | {"rope_theta": 1_000_000.0, "router_aux_loss_coef": 0.02, "sliding_window": None},
        46_702_792_704,
    ),
    "qwen2.5-0.5b": (
        QWEN_2
        | sizes(896, 4864, 24, 14, 2)
        | {"max_position_embeddings": 32_768, "max_window_layers": 24, "sliding_window": 32_768, "use_mrope": False}
        | {"tie_word_embeddings": True, "vocab_size": 151_936},
        494_032_768,
    ),
    "qwen2-7b": (
        QWEN_2
        | sizes(3584, 18_944, 28, 28, 4)
        | {"max_position_embeddings": 131_072, "max_window_layers": 28, "sliding_window": 131_072}
        | {"tie_word_embeddings": False, "vocab_size": 152_064},
        7_615_616_512,
    ),
    "qwen3-0.6b": (
        QWEN_3 | sizes(1024, 3072, 28, 16, 8) | {"max_window_layers": 28, "tie_word_embeddings": True},
        596_049_920,
    ),
    "qwen3-8b": (
        QWEN_3 | sizes(4096, 12_288, 36, 32, 8) | {"max_window_layers": 36, "tie_word_embeddings": False},
        8_190_735_360,
    ),
    "qwen3-30b-a3b": (
        QWEN_3
        | sizes(2048, 6144, 48, 32, 4)
        | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "max_window_layers": 48}
        | {"decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True}
        | {"num_experts": 128, "num_experts_per_tok": 8, "output_router_logits": False, "router_aux_loss_coef": 0.001}
        | {"tie_word_embeddings": False},
        30_532_122_624,
    ),
    "gemma-2b": (GEMMA_1 | sizes(2048, 16_384, 18, 8, 1), 2_506_172_416),
    "gemma-7b": (GEMMA_1 | sizes(3072, 24_576, 28, 16, 16), 8_537_680_896),
    "gemma-2-2b": (GEMMA_2 | sizes(2304, 9216, 26, 8, 4), 2_614_341_888),
    "gemma-2-9b": (GEMMA_2 | sizes(3584, 14_336, 42, 16, 8) | {"sliding_window_size": 4096}, 9_241_705_984),
    "gemma-3-1b": (
        GEMMA
        | sizes(1152, 6912, 26, 4, 1)
        | {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "cache_implementation": "hybrid"}
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "hidden_activation": "gelu_pytorch_tanh"}
        | {"max_position_embeddings": 32_768, "query_pre_attn_scalar": 256, "rope_local_base_freq": 10_000}
        | {"rope_scaling": None, "rope_theta": 1_000_000, "sliding_window": 512, "sliding_window_pattern": 6}
        | {"vocab_size": 262_144},
        999_885_952,
    ),
    "phi-3-mini-4k": (
        COMMON
        | sizes(3072, 8192, 32, 32, 32)
        | {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": False, "vocab_size": 32_064}
        | {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1, "eos_token_id": 32_000}
        | {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
        | {"original_max_position_embeddings": 4096, "rope_scaling": None, "rope_theta": 10_000.0}
        | {"pad_token_id": 32_000, "sliding_window": 2047, "tie_word_embeddings": False},
        3_821_079_552,
    ),
    "olmo-2-1b": (OLMO_2 | sizes(2048, 8192, 16, 16, 16), 1_484_916_736),
    "olmo-2-7b": (OLMO_2 | sizes(4096, 11_008, 32, 32, 32), 7_298_617_344),
}
