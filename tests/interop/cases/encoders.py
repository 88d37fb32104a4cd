"""Encoders, and the decoder with a classifier whose config has unusual names for its sizes."""

from tests.interop.cases.base import Case

BERT = {
    "vocab_size": 51,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
}
ROBERTA = BERT | {"max_position_embeddings": 15, "pad_token_id": 2, "type_vocab_size": 1}
FACTORISED = BERT | {"embedding_size": 10}
DISTILBERT = {
    "vocab_size": 51,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 40,
    "max_position_embeddings": 12,
}
# Windows of 3 tokens on each side in the second and third of four layers.
MODERNBERT = BERT | {
    "num_hidden_layers": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "local_attention": 6,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PLACES, ROWS = {"counted": False}, {"counted": False, "left": False}
THREE = {"num_labels": 3}

CASES: dict[str, Case] = {
    "bert": Case("BertForPreTraining", BERT, **ROWS),
    "bert_masked": Case("BertForMaskedLM", BERT | {"hidden_act": "relu"}, **PLACES),
    "bert_bare": Case("BertModel", BERT, **ROWS),
    "bert_classifier": Case("BertForSequenceClassification", BERT | THREE, **ROWS),
    "bert_tagger": Case("BertForTokenClassification", BERT | THREE, **PLACES),
    "bert_span": Case("BertForQuestionAnswering", BERT, **PLACES),
    "roberta": Case("RobertaForMaskedLM", ROBERTA, told=False),
    "roberta_bare": Case("RobertaModel", ROBERTA | {"type_vocab_size": 2}, told=False, left=False),
    "roberta_classifier": Case("RobertaForSequenceClassification", ROBERTA | THREE, told=False, left=False),
    "distilbert": Case("DistilBertForMaskedLM", DISTILBERT, **PLACES),
    "distilbert_classifier": Case(
        "DistilBertForSequenceClassification", DISTILBERT | THREE | {"activation": "relu"}, **ROWS
    ),
    "electra": Case("ElectraForPreTraining", FACTORISED, **PLACES),
    "electra_generator": Case("ElectraForMaskedLM", FACTORISED, **PLACES),
    "electra_bare": Case("ElectraModel", BERT | {"embedding_size": 24}, **PLACES),
    "electra_classifier": Case("ElectraForSequenceClassification", FACTORISED | THREE, **ROWS),
    "albert": Case("AlbertForPreTraining", FACTORISED, **ROWS),
    "albert_classifier": Case("AlbertForSequenceClassification", FACTORISED | THREE, **ROWS),
    "modernbert": Case("ModernBertForMaskedLM", MODERNBERT),
    "modernbert_biased": Case(
        "ModernBertForMaskedLM",
        MODERNBERT
        | dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True)
        | {"tie_word_embeddings": False, "hidden_activation": "silu", "classifier_activation": "silu"},
    ),
    "modernbert_classifier": Case("ModernBertForSequenceClassification", MODERNBERT | THREE, left=False),
    "modernbert_mean": Case("ModernBertForSequenceClassification", MODERNBERT | THREE | {"classifier_pooling": "mean"}),
    "modernbert_span": Case("ModernBertForQuestionAnswering", MODERNBERT),
    "gpt2_classifier": Case(
        "GPT2ForSequenceClassification",
        {
            "vocab_size": 51,
            "n_embd": 24,
            "n_layer": 2,
            "n_head": 3,
            "n_positions": 12,
            "n_inner": 40,
            "pad_token_id": 0,
            "num_labels": 3,
        },
    ),
}
