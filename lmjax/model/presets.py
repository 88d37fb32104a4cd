"""Published models by name, with their sizes, and nano models that train on a laptop.

Each family has the fields that its members share, and for each member the fields that differ.
"""

from typing import Any

from lmjax.model.config import ModelConfig


def _family(shared: dict[str, Any], **members: dict[str, Any]) -> dict[str, ModelConfig]:
    """Returns the configs of a family by name: the shared fields, with the member's own fields replacing them."""
    return {name: ModelConfig(**(shared | own)) for name, own in members.items()}


def _size(embed_dim: int, num_layers: int, num_heads: int, mlp_dim: int, **others: Any) -> dict[str, Any]:
    """Returns the fields for the size of a model, and others."""
    sizes = {"embed_dim": embed_dim, "num_layers": num_layers, "num_heads": num_heads, "mlp_dim": mlp_dim}
    return sizes | others


_DROPOUT = {"dropout.residual": 0.1, "dropout.attention": 0.1}

_BERT = {  # Devlin et al. 2019, arXiv:1810.04805, section 3 and appendix A.2; 30,522 word pieces
    "architecture": "encoder",
    "vocab_size": 30_522,
    "max_length": 512,
    "norm_position": "post",
    "norm_epsilon": 1e-12,
    "mlp": "gelu",
    "embedding.types": 2,
    "embedding.norm": True,
    "head.bias": True,
    "head.transform": True,
    "initializer": "truncated_normal",
    **_DROPOUT,
}
_ENCODERS = {
    **_family(
        _BERT,
        # Turc et al. 2019, arXiv:1908.08962, table 1.
        bert_tiny=_size(128, 2, 2, 512),
        bert_mini=_size(256, 4, 4, 1024),
        bert_small=_size(512, 4, 8, 2048),
        bert_medium=_size(512, 8, 8, 2048),
        bert_base=_size(768, 12, 12, 3072),
        bert_large=_size(1024, 24, 16, 4096),
    ),
    **_family(  # Liu et al. 2019, arXiv:1907.11692, section 3 and appendix A; one token type
        _BERT | {"vocab_size": 50_265, "norm_epsilon": 1e-5, "embedding.types": 1, "position_offset": 2},
        roberta_base=_size(768, 12, 12, 3072),
        roberta_large=_size(1024, 24, 16, 4096),
    ),
    **_family(  # Lan et al. 2020, arXiv:1909.11942, table 1; version 2 has no dropout
        _BERT | {"vocab_size": 30_000, "embedding.dim": 128, "share_layers": True, "mlp": "gelu_new"},
        albert_base=_size(768, 12, 12, 3072) | {"dropout.residual": 0.0, "dropout.attention": 0.0},
    ),
    # Clark et al. 2020, arXiv:2003.10555, table 6.
    **_family(_BERT, electra_small=_size(256, 12, 4, 1024) | {"embedding.dim": 128, "head.classifier": "gelu"}),
    **_family(  # Warner et al. 2024, arXiv:2412.13663, section 2.1 and table 4: 64 tokens to each side
        {
            "architecture": "encoder",
            "vocab_size": 50_368,
            "max_length": 8192,
            "biases": (),
            "mlp": "geglu",
            "positions": "rope",
            "rope": {"theta": 160_000.0, "local_theta": 10_000.0},
            "attention.window": 65,
            "attention.global_every": 3,
            "embedding.norm": True,
            "first_norm": False,
            "head.bias": True,
            "head.transform": True,
            "head.classifier": "transform",
            "head.pooling": "mean",
            "initializer": "truncated_normal",
            "scan_layers": False,
        },
        modernbert_base=_size(768, 22, 12, 1152),
    ),
}

_GPT2 = {  # Radford et al. 2019, section 2.3 and table 2
    "architecture": "decoder",
    "vocab_size": 50_257,
    "max_length": 1024,
    "mlp": "gelu_new",
    "initializer": "scaled",
    **_DROPOUT,
}
_LLAMA = {  # Touvron et al. 2023, arXiv:2302.13971, section 2.2
    "architecture": "decoder",
    "norm": "rmsnorm",
    "biases": (),
    "mlp": "swiglu",
    "positions": "rope",
    "head.tied": False,
    "dtype": "bfloat16",
}
_QWEN = _LLAMA | {"vocab_size": 151_936, "norm_epsilon": 1e-6, "rope": {"theta": 1_000_000.0}}
_GEMMA = _LLAMA | {
    "vocab_size": 256_000,
    "max_length": 8192,
    "head_dim": 256,
    "norm_epsilon": 1e-6,
    "norm_offset": True,
    "mlp": "geglu_new",
    "embedding.scale": True,
    "head.tied": True,
}
_DECODERS = {
    **_family(
        _GPT2,
        gpt2=_size(768, 12, 12, 3072),
        gpt2_medium=_size(1024, 24, 16, 4096),
        gpt2_large=_size(1280, 36, 20, 5120),
        gpt2_xl=_size(1600, 48, 25, 6400),
    ),
    **_family(  # Black et al. 2022, arXiv:2204.06745, section 2.1; Biderman et al. 2023, arXiv:2304.01373, table 1
        {
            "architecture": "decoder",
            "vocab_size": 50_304,
            "max_length": 2048,
            "block": "parallel",
            "mlp": "gelu",
            "positions": "rope",
            "rope": {"fraction": 0.25},
            "head.tied": False,
            "initializer": "scaled",
        },
        pythia_160m=_size(768, 12, 12, 3072),
    ),
    **_family(  # Zhang et al. 2022, arXiv:2205.01068, sections 2.1 and 2.2
        _GPT2 | {"vocab_size": 50_272, "max_length": 2048, "position_offset": 2, "mlp": "relu", "init_std": 0.006},
        opt_125m=_size(768, 12, 12, 3072),
    ),
    **_family(  # Touvron et al. 2023, arXiv:2307.09288, table 1
        _LLAMA | {"vocab_size": 32_000},
        llama2_7b=_size(4096, 32, 32, 11_008, max_length=4096),
    ),
    **_family(  # Grattafiori et al. 2024, arXiv:2407.21783, section 3.2 and table 3
        _LLAMA | {"vocab_size": 128_256, "num_kv_heads": 8, "rope": {"theta": 500_000.0}},
        llama3_8b=_size(4096, 32, 32, 14_336, max_length=8192),
        llama3_2_1b=_size(
            2048,
            16,
            32,
            8192,
            max_length=131_072,
            rope={"theta": 500_000.0, "scaling": "llama3", "factor": 32.0, "original_length": 8192},
        )
        | {"head.tied": True},
    ),
    **_family(  # Jiang et al. 2023, arXiv:2310.06825, table 1; Jiang et al. 2024, arXiv:2401.04088, table 1
        _LLAMA | {"vocab_size": 32_000, "num_kv_heads": 8, "max_length": 32_768},
        mistral_7b=_size(4096, 32, 32, 14_336) | {"attention.window": 4096},
        mixtral_8x7b=_size(4096, 32, 32, 14_336, rope={"theta": 1_000_000.0}, moe={"num_experts": 8, "top_k": 2}),
    ),
    **_family(  # Yang et al. 2024, arXiv:2407.10671, table 1
        _QWEN | {"max_length": 131_072, "biases": ("query", "key", "value"), "head.tied": True},
        qwen2_0_5b=_size(896, 24, 14, 4864, num_kv_heads=2),
    ),
    **_family(  # Yang et al. 2025, arXiv:2505.09388, tables 1 and 2
        _QWEN | {"max_length": 40_960, "num_kv_heads": 8, "head_dim": 128, "attention.qk_norm": "head"},
        qwen3_0_6b=_size(1024, 28, 16, 3072) | {"head.tied": True},
        qwen3_1_7b=_size(2048, 28, 16, 6144) | {"head.tied": True},
        qwen3_4b=_size(2560, 36, 32, 9728) | {"head.tied": True},
        qwen3_8b=_size(4096, 36, 32, 12_288),
        qwen3_30b_a3b=_size(2048, 48, 32, 6144, num_kv_heads=4, moe={"num_experts": 128, "top_k": 8, "mlp_dim": 768}),
    ),
    **_family(
        _GEMMA,
        # Gemma Team 2024, arXiv:2403.08295, table 1.
        gemma_2b=_size(2048, 18, 8, 16_384, num_kv_heads=1),
        # Gemma Team 2024, arXiv:2408.00118, section 2 and table 1.
        gemma2_2b=_size(
            2304,
            26,
            8,
            9216,
            num_kv_heads=4,
            norm_position="sandwich",
            attention={"window": 4096, "global_every": 2, "global_offset": 1, "softcap": 50.0},
        )
        | {"head.softcap": 30.0},
        # Gemma Team 2025, arXiv:2503.19786, section 2 and table 1.
        gemma3_1b=_size(
            1152,
            26,
            4,
            6912,
            vocab_size=262_144,
            max_length=32_768,
            num_kv_heads=1,
            norm_position="sandwich",
            attention={
                "qk_norm": "head",
                "window": 512,
                "global_every": 6,
                "global_offset": 5,
            },
            rope={"theta": 1_000_000.0, "local_theta": 10_000.0},
        ),
    ),
    # Abdin et al. 2024, arXiv:2404.14219, section 2; the 4k model.
    **_family(
        _LLAMA, phi3_mini=_size(3072, 32, 32, 8192, vocab_size=32_064, max_length=4096) | {"attention.window": 2047}
    ),
    **_family(  # OLMo Team 2025, arXiv:2501.00656, section 2.1 and table 1
        _LLAMA | {"vocab_size": 100_352, "norm_position": "output", "norm_epsilon": 1e-6, "attention.qk_norm": "full"},
        olmo2_7b=_size(4096, 32, 32, 11_008, max_length=4096, rope={"theta": 500_000.0}),
    ),
    **_family(  # Allal et al. 2025, arXiv:2502.02737, appendix; the first version's 135M
        _LLAMA | {"vocab_size": 49_152, "max_length": 2048, "head.tied": True},
        smollm_135m=_size(576, 30, 9, 1536, num_kv_heads=3),
    ),
}

_T5 = {  # Raffel et al. 2020, arXiv:1910.10683, sections 2.1 and 3.7
    "architecture": "encoder_decoder",
    "vocab_size": 32_128,
    "head_dim": 64,
    "max_length": 512,
    "norm": "rmsnorm",
    "norm_epsilon": 1e-6,
    "biases": (),
    "positions": "relative",
    "attention.scale": 1.0,
    "initializer": "fan_in",
}
_VASWANI = {  # Vaswani et al. 2017, arXiv:1706.03762, sections 3 and 5 and table 3; only MLPs have biases
    "architecture": "encoder_decoder",
    "vocab_size": 37_000,
    "max_length": 1024,
    "norm_position": "post",
    "biases": ("up", "down", "norm"),
    "mlp": "relu",
    "positions": "sinusoidal",
    "embedding.scale": True,
    "initializer": "xavier",
}
_ENCODER_DECODERS = {
    **_family(
        _T5 | _DROPOUT | {"mlp": "relu", "head.scale": True, "dropout.mlp": 0.1, "dropout.output": 0.1},
        t5_small=_size(512, 6, 8, 2048),
        t5_base=_size(768, 12, 12, 3072),
        t5_large=_size(1024, 24, 16, 4096),
        t5_3b=_size(1024, 24, 32, 16_384, head_dim=128),
    ),
    **_family(  # T5 v1.1: Shazeer 2020, arXiv:2002.05202; pre-trained without dropout
        _T5 | {"mlp": "geglu_new", "head.tied": False},
        t5_v1_1_small=_size(512, 8, 6, 1024),
        t5_v1_1_base=_size(768, 12, 12, 2048),
        t5_v1_1_large=_size(1024, 24, 16, 2816),
        t5_v1_1_xl=_size(2048, 24, 32, 5120),
        # Guo et al. 2022, arXiv:2112.07916, sections 3.1.2 and 4.1.1: 127 tokens to each side.
        long_t5_base=_size(768, 12, 12, 2048, max_length=4096)
        | {"attention.window": 128, "attention.global_block": 16, "attention.decoder_window": False},
    ),
    **_family(  # Lewis et al. 2020, arXiv:1910.13461, section 2.1; RoBERTa's byte pairs
        {
            "architecture": "encoder_decoder",
            "vocab_size": 50_265,
            "max_length": 1024,
            "norm_position": "post",
            "mlp": "gelu",
            "position_offset": 2,
            "embedding.norm": True,
            **_DROPOUT,
        },
        bart_base=_size(768, 6, 12, 3072),
        bart_large=_size(1024, 12, 16, 4096),
    ),
    **_family(
        _VASWANI,
        transformer_base=_size(512, 6, 8, 2048) | {"dropout.residual": 0.1},
        transformer_big=_size(1024, 6, 16, 4096) | {"dropout.residual": 0.3},
    ),
}

# The layers of nano models are unrolled, because on a CPU a scan over a few small layers is slower by a fifth.
_NANO = _size(128, 2, 4, 384) | {
    "vocab_size": 2048,
    "max_length": 512,
    "norm": "rmsnorm",
    "biases": (),
    "mlp": "swiglu",
    "positions": "rope",
    "initializer": "scaled",
    "scan_layers": False,
}
_NANOS = _family(
    _NANO,
    nano_encoder={"architecture": "encoder", "embedding.types": 2, "head.bias": True},
    nano_decoder={"architecture": "decoder"},
    nano_encoder_decoder={"architecture": "encoder_decoder"},
)

PRESETS: dict[str, ModelConfig] = _NANOS | _ENCODERS | _DECODERS | _ENCODER_DECODERS
