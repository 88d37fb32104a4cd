"""The workloads of the training benchmark: a published model, a batch of random tokens, and the predicted positions.

They are plain numbers, so that the workers of both sides read them without importing the other side's libraries.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model and the batch that it is trained on.

    Attributes:
        preset: the model's name in lmjax.
        family: of transformers' classes, or nanogpt.
        batch: rows.
        length: tokens in a row; for an encoder-decoder, in a row of the encoder.
        target_length: tokens in a row of an encoder-decoder's decoder; 0: another family.
        mask_rate: share of the tokens that a masked LM predicts; 0: every token is predicted.
        peer: fields of transformers' config that differ from its defaults.
        fields: of our config, that differ from the preset's.
    """

    preset: str
    family: str
    batch: int
    length: int
    target_length: int = 0
    mask_rate: float = 0.0
    peer: tuple[tuple[str, object], ...] = ()
    fields: tuple[tuple[str, str], ...] = ()


LLAMA_1B = (
    ("vocab_size", 128_256),
    ("hidden_size", 2048),
    ("intermediate_size", 8192),
    ("num_hidden_layers", 16),
    ("num_attention_heads", 32),
    ("num_key_value_heads", 8),
    ("head_dim", 64),
    ("max_position_embeddings", 131_072),
    ("tie_word_embeddings", True),
)
_BERT_LARGE = (
    ("hidden_size", 1024),
    ("num_hidden_layers", 24),
    ("num_attention_heads", 16),
    ("intermediate_size", 4096),
)
_T5_LARGE = (("decoder_start_token_id", 0), ("d_model", 1024), ("d_ff", 4096), ("num_layers", 24), ("num_heads", 16))


def _sized(
    embed_dim: int, num_layers: int, num_heads: int, mlp_dim: int, vocab_size: int
) -> tuple[tuple[str, str], ...]:
    """Returns fields of our config for the size of a model."""
    sizes = {"embed_dim": embed_dim, "num_layers": num_layers, "num_heads": num_heads, "mlp_dim": mlp_dim}
    return tuple((f"model.{name}", str(size)) for name, size in (sizes | {"vocab_size": vocab_size}).items())


# nanoGPT's recipe for a CPU: no biases, the exact GELU.
_NANOGPT = (*_sized(128, 4, 4, 512, 65), ("model.max_length", "64"), ("model.biases", ""), ("model.mlp", "gelu"))
_NANO_BERT = (
    ("vocab_size", 2048),
    ("hidden_size", 128),
    ("num_hidden_layers", 2),
    ("num_attention_heads", 4),
    ("intermediate_size", 512),
)
_NANO_T5 = (
    ("decoder_start_token_id", 0),
    ("vocab_size", 2048),
    ("d_model", 128),
    ("d_kv", 32),
    ("d_ff", 512),
    ("num_layers", 2),
    ("num_heads", 4),
)

WORKLOADS = {
    # For two CPU cores.
    "gpt2": Workload("gpt2", "gpt2", 2, 512),
    "bert_base": Workload("bert_base", "bert", 8, 128, mask_rate=0.15),
    "t5_small": Workload("t5_small", "t5", 8, 128, 32, peer=(("decoder_start_token_id", 0),)),
    # Small models, for two CPU cores.
    "nanogpt": Workload("gpt2", "nanogpt", 12, 64, fields=_NANOGPT),
    "nano_bert": Workload("bert_tiny", "bert", 16, 128, 0, 0.15, _NANO_BERT, _sized(128, 2, 4, 512, 2048)),
    "nano_t5": Workload(
        "t5_small", "t5", 8, 128, 32, peer=_NANO_T5, fields=(*_sized(128, 2, 4, 512, 2048), ("model.head_dim", "32"))
    ),
    # For one accelerator.
    "gpt2_1024": Workload("gpt2", "gpt2", 16, 1024),
    "llama_1b_1024": Workload("llama3_2_1b", "llama", 8, 1024, peer=LLAMA_1B),
    "bert_large_512": Workload("bert_large", "bert", 32, 512, mask_rate=0.15, peer=_BERT_LARGE),
    "t5_large_1024": Workload("t5_large", "t5", 8, 1024, 256, peer=_T5_LARGE, fields=(("model.max_length", "1024"),)),
    # For the tests of the benchmark itself.
    "tiny": Workload(
        "nano_decoder",
        "gpt2",
        2,
        32,
        peer=(("n_layer", 2), ("n_embd", 64), ("n_head", 2)),
        fields=(("model.vocab_size", "2048"),),
    ),
}


def random_tokens(workload: Workload, vocab_size: int) -> dict[str, np.ndarray]:
    """Returns int32 `source` and `target` tokens and `masked`, sorted positions of the predictions in every row."""
    rng = np.random.default_rng(0)
    masked = round(workload.length * workload.mask_rate)
    order = rng.permuted(np.tile(np.arange(workload.length), (workload.batch, 1)), axis=1)
    return {
        "source": rng.integers(5, vocab_size, (workload.batch, workload.length), np.int32),
        "target": rng.integers(5, vocab_size, (workload.batch, workload.target_length), np.int32),
        "masked": np.sort(order[:, :masked], axis=1),
    }
