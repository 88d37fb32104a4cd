"""Encoder-decoders."""

from tests.interop.cases.base import Case

T5 = {
    "vocab_size": 51,
    "d_model": 14,
    "d_kv": 6,
    "d_ff": 16,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "decoder_start_token_id": 0,
}
BART = {
    "vocab_size": 51,
    "d_model": 12,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
    "num_labels": 2,
}

CASES = {
    "t5": Case("T5ForConditionalGeneration", T5),
    # transformers 5 writes that every T5 is tied; the case unties it, as the published weights are.
    "t5_v1_1": Case(
        "T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    ),
    "t5_encoder": Case("T5EncoderModel", T5 | {"feed_forward_proj": "gated-silu"}),
    "mt5": Case("MT5ForConditionalGeneration", T5),
    "umt5": Case("UMT5ForConditionalGeneration", T5),
    "bart": Case("BartForConditionalGeneration", BART, counted=False),
    "mbart": Case("MBartForConditionalGeneration", BART | {"scale_embedding": True}, counted=False),
    "marian": Case("MarianMTModel", BART | {"activation_function": "swish", "scale_embedding": True}, counted=False),
    "pegasus": Case(
        "PegasusForConditionalGeneration",
        BART | {"activation_function": "relu", "scale_embedding": True},
        counted=False,
    ),
}
