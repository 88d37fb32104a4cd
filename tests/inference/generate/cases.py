"""The small models whose texts are compared with those of transformers' `generate`, and the settings of each.

`python tests/inference/generate/record.py NAME ...` recreates the folders under `recorded/`, which needs torch and
transformers. The tests read the folders and need neither.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

VOCAB, PAD, START, TEXT = 40, 0, 2, 3
PROMPTS, LONGEST_PROMPT, NEW_TOKENS = 200, 12, 16


class Run(NamedTuple):
    """Settings of generation; the fields have lmjax's names."""

    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return: int = 1
    repetition_penalty: float | None = None
    no_repeat_ngram: int = 0


class Case(NamedTuple):
    """One model.

    Attributes:
        model: transformers' class.
        config: the arguments of its config class.
        runs: settings in addition to greedy decoding, which is recorded for every model.
        trained: whether it is trained on a small language; off: its parameters are random.
    """

    model: str
    config: dict[str, Any]
    runs: tuple[Run, ...]
    trained: bool = False


# Small sizes that all differ, so that swapped axes are detected.
DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 36,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": START,
}
NEOX = {k: v for k, v in DECODER.items() if k not in ("head_dim", "num_key_value_heads")} | {"num_attention_heads": 3}
GPT2 = {"vocab_size": VOCAB, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 64, "n_inner": 36}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT2 |= {"pad_token_id": PAD, "bos_token_id": START}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 14,
    "d_kv": 6,
    "d_ff": 16,
    # As many layers on both sides: transformers 5.23 makes its cache as deep as the encoder.
    "num_layers": 2,
    "num_heads": 3,
    "dropout_rate": 0.0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "decoder_start_token_id": PAD,
}
BART = {
    "vocab_size": VOCAB,
    "d_model": 24,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 36,
    "decoder_ffn_dim": 36,
    "dropout": 0.0,
    "max_position_embeddings": 32,
    "pad_token_id": PAD,
    "bos_token_id": START,
    "decoder_start_token_id": START,
    "forced_eos_token_id": None,
}


def beams(count: int, *length_penalties: float, **values: Any) -> tuple[Run, ...]:
    """Returns a run for each length penalty; the runs share a compiled program."""
    return tuple(Run(count, penalty, **values) for penalty in length_penalties)


CASES = {
    "gpt2": Case("GPT2LMHeadModel", GPT2, beams(4, 0.0, 2.0)),
    "llama": Case("LlamaForCausalLM", DECODER, beams(5, 0.6, early_stopping=True)),
    # Texts are longer than the windows.
    "gemma3": Case(
        "Gemma3ForCausalLM",
        DECODER
        | {"num_hidden_layers": 3, "sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 20},
        beams(4, 1.0, early_stopping="never"),
    ),
    "opt": Case(
        "OPTForCausalLM",
        {k: DECODER[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id", "bos_token_id")}
        | {"num_attention_heads": 3, "ffn_dim": 36, "max_position_embeddings": 64},
        beams(5, 1.0),
    ),
    "neox": Case("GPTNeoXForCausalLM", NEOX | {"rotary_pct": 0.5}, beams(4, 0.6, early_stopping=True)),
    "t5": Case("T5ForConditionalGeneration", T5, beams(4, 2.0)),
    "bart_trained": Case("BartForConditionalGeneration", BART, beams(5, 1.0, early_stopping="never"), trained=True),
    "marian_trained": Case(
        "MarianMTModel",
        BART | {"activation_function": "swish", "scale_embedding": True},
        beams(4, 0.6, early_stopping=True),
        trained=True,
    ),
    "gpt2_trained": Case(
        "GPT2LMHeadModel",
        GPT2 | {"n_embd": 48, "n_inner": 96, "n_head": 4},
        beams(5, 0.6, early_stopping=True)
        + beams(5, 1.0, early_stopping="never", num_return=3)
        + beams(4, 1.0, repetition_penalty=1.3, no_repeat_ngram=2),
        trained=True,
    ),
    "t5_trained": Case(
        "T5ForConditionalGeneration",
        T5 | {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4},
        beams(5, 0.0, 2.0) + beams(4, 0.6, early_stopping="never", num_return=3),
        trained=True,
    ),
}


def runs(case: Case) -> tuple[Run, ...]:
    """Returns all settings of a model."""
    return (Run(), *case.runs)
