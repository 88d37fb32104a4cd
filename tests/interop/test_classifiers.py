"""Classifiers that transformers wrote: their rows of one or two texts, their predictions, and the way back."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lmjax.cli import run
from lmjax.evaluation.predicted import as_documents, encoded
from lmjax.inference.predict import predict
from lmjax.runs.trained import load_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]

TEXTS = ["an owl sees the old river", "never a house under trees", "the king goes", "x"]
PAIRS = [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[3]), (TEXTS[1], None), (TEXTS[3], TEXTS[0])]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LABELS = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}


def word_piece():
    """The vocabulary of a tokenizer like BERT's."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=80, special_tokens=special))
    return {"vocab": made.get_vocab()}


def byte_pairs(*special):
    """The vocabulary and the merges of a tokenizer like RoBERTa's and GPT-2's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet)
    )
    merges = json.loads(made.to_str())["model"]["merges"]
    return {"vocab": made.get_vocab(), "merges": [tuple(m) for m in merges]}


def _bert(name, **fields):
    tokenizer = getattr(transformers, f"{name}Tokenizer")(**word_piece())
    return tokenizer, getattr(transformers, f"{name}Config")(vocab_size=80, **fields, **LABELS)


def _roberta():
    tokenizer = transformers.RobertaTokenizer(**byte_pairs("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    config = transformers.RobertaConfig(
        vocab_size=310, type_vocab_size=1, max_position_embeddings=66, **SIZES, **LABELS
    )
    return tokenizer, config


def _gpt2():
    tokenizer = transformers.GPT2Tokenizer(**byte_pairs("<|endoftext|>"))
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
    return tokenizer, transformers.GPT2Config(vocab_size=310, pad_token_id=0, **sizes, **LABELS)


def _llama():
    pieces = byte_pairs("<unk>", "<s>", "</s>")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=_with_template(pieces), unk_token="<unk>",
                                                     bos_token="<s>", eos_token="</s>")  # fmt: skip
    config = transformers.LlamaConfig(
        vocab_size=310, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=64, **SIZES, **LABELS
    )
    return tokenizer, config


def _with_template(pieces):
    """A tokenizer that begins each text with <s>, as Llama's does."""
    from tokenizers import processors

    made = Tokenizer(models.BPE(**pieces))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", pieces["vocab"]["<s>"])]
    )
    return made


FAMILIES = {
    "bert": lambda: _bert("Bert", max_position_embeddings=64, **SIZES),
    "electra": lambda: _bert("Electra", max_position_embeddings=64, embedding_size=8, **SIZES),
    "distilbert": lambda: _bert("DistilBert", dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=64),
    "roberta": _roberta,
    "gpt2": _gpt2,
    "llama": _llama,
}


@pytest.fixture(scope="module", params=FAMILIES)
def written(request, tmp_path_factory):
    """The folder of a random classifier as transformers writes it, with its model and its tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    tokenizer, config = FAMILIES[request.param]()
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def probabilities(model, tokenizer, pairs):
    found = []
    for texts in pairs:
        with torch.no_grad():
            given = tokenizer(*(text for text in texts if text), return_tensors="pt")
            found.append(torch.softmax(model(**given).logits[0], -1).numpy())
    return np.array(found)


def predicted(loaded, pairs):
    rows = [{"text": a} | ({"text2": b} if b else {}) for a, b in pairs]
    documents = as_documents(rows, loaded.task, gold=False)
    found = predict(loaded, encoded(loaded, documents, gold=False))
    return np.array([[each["scores"][name] for name in LABELS["label2id"]] for each in found])


def test_rows_are_those_of_the_tokenizer(written):
    folder, _, tokenizer = written
    loaded = load_model(folder)
    for pair in PAIRS:
        texts = [text for text in pair if text]
        ids = [np.array(loaded.tokenizer.encode(text), np.int32) for text in texts]
        row = loaded.task.text_row(loaded.prompts, ids, 64)
        theirs = tokenizer(*texts)
        there = row["segment_ids"] > 0
        assert row["tokens"][there].tolist() == theirs["input_ids"]
        # Without them the model reads zeros, or has no types.
        types = theirs.get("token_type_ids", loaded.config.embedding.types > 1 and [0] * there.sum())
        assert not types or row["type_ids"][there].tolist() == types


def test_a_classifier_predicts_what_it_did_and_trains_on(written, tmp_path):
    """In, its probabilities; fine-tuned on; and out, those of the fine-tuned model."""
    folder, model, tokenizer = written
    expected = probabilities(model, tokenizer, PAIRS)
    np.testing.assert_allclose(predicted(load_model(folder), PAIRS), expected, atol=1e-5)
    for name in ("a", "dev"):
        lines = [
            {"text": a, "text2": b or "", "label": label}
            for (a, b), label in zip(PAIRS, ("no", "yes", "no", "maybe"), strict=True)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(["train", f"--init_from={folder}", "--objective=classification", f"--data={tmp_path / 'a.jsonl'}",
         f"--eval_data=dev={tmp_path / 'dev.jsonl'}", f"--workdir={tmp_path / 'run'}", "--steps=2", "--lr=0.01",
         "--batch_size=8", "--config.task.length=32", "--config.logging.tensorboard=false",
         "--noprogress"])  # fmt: skip
    run(["convert", f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"])
    after = predicted(load_model(tmp_path / "run"), PAIRS)
    assert np.abs(after - expected).max() > 1e-3
    out = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(probabilities(out, again, PAIRS), after, atol=1e-5)
