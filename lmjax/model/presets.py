"""Published models by name, with their sizes, and nano models that train on a laptop."""

from lmjax.model.config import ModelConfig

BERT_BASE = ModelConfig(  # Devlin et al. 2019, arXiv:1810.04805, section 3 and appendix A.2; 30,522 word pieces
    architecture="encoder",
    vocab_size=30_522,
    embed_dim=768,
    num_heads=12,
    mlp_dim=3072,
    num_layers=12,
    max_length=512,
    norm="layernorm",
    norm_position="post",
    norm_epsilon=1e-12,
    use_bias=True,
    mlp="gelu",
    positions="learned",
    num_types=2,
    embed_norm=True,
    tie_embeddings=True,
    output_bias=True,
    mlm_transform=True,
    initializer="normal",
    dropout_rate=0.1,
    attention_dropout_rate=0.1,
)

GPT2 = ModelConfig(  # Radford et al. 2019, section 2.3 and table 2 (the smallest)
    architecture="decoder",
    vocab_size=50_257,
    embed_dim=768,
    num_heads=12,
    mlp_dim=3072,
    num_layers=12,
    max_length=1024,
    norm="layernorm",
    norm_position="pre",
    use_bias=True,
    mlp="gelu_new",
    positions="learned",
    tie_embeddings=True,
    initializer="scaled",
    dropout_rate=0.1,
    attention_dropout_rate=0.1,
)

T5_SMALL = ModelConfig(  # Raffel et al. 2020, arXiv:1910.10683, sections 2.1 and 3.7
    architecture="encoder_decoder",
    vocab_size=32_128,
    embed_dim=512,
    num_heads=8,
    head_dim=64,
    mlp_dim=2048,
    num_layers=6,
    max_length=512,
    norm="rmsnorm",
    norm_position="pre",
    norm_epsilon=1e-6,
    use_bias=False,
    mlp="relu",
    positions="relative",
    tie_embeddings=True,
    logit_scale=True,
    attention_scale=False,
    initializer="fan_in",
    dropout_rate=0.1,
    attention_dropout_rate=0.1,
    mlp_dropout_rate=0.1,
    output_dropout_rate=0.1,
)

T5_V1_1_SMALL = ModelConfig(  # T5 v1.1: Shazeer 2020, arXiv:2002.05202; pre-trained without dropout
    architecture="encoder_decoder",
    vocab_size=32_128,
    embed_dim=512,
    num_heads=6,
    head_dim=64,
    mlp_dim=1024,
    num_layers=8,
    max_length=512,
    norm="rmsnorm",
    norm_position="pre",
    norm_epsilon=1e-6,
    use_bias=False,
    mlp="geglu_new",
    positions="relative",
    tie_embeddings=False,
    attention_scale=False,
    initializer="fan_in",
)

# The nano models are unrolled: on a CPU a scan over a few small layers costs a fifth of the speed.
_NANO = {
    "vocab_size": 2048,
    "embed_dim": 128,
    "num_heads": 4,
    "mlp_dim": 384,
    "num_layers": 2,
    "max_length": 512,
    "norm": "rmsnorm",
    "use_bias": False,
    "mlp": "swiglu",
    "positions": "rope",
    "initializer": "scaled",
    "scan_layers": False,
}
NANO_ENCODER = ModelConfig(architecture="encoder", num_types=2, output_bias=True, **_NANO)
NANO_DECODER = ModelConfig(architecture="decoder", **_NANO)
NANO_ENCODER_DECODER = ModelConfig(architecture="encoder_decoder", **_NANO)

PRESETS: dict[str, ModelConfig] = {
    "bert_base": BERT_BASE,
    "gpt2": GPT2,
    "t5_small": T5_SMALL,
    "t5_v1_1_small": T5_V1_1_SMALL,
    "nano_encoder": NANO_ENCODER,
    "nano_decoder": NANO_DECODER,
    "nano_encoder_decoder": NANO_ENCODER_DECODER,
}
