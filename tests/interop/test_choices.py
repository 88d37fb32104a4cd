"""Models for multiple choice that transformers wrote: their probabilities, fine-tuned on, and the way back."""

import json

import numpy as np
import pytest

from lmjax.cli import run
from lmjax.evaluation.predicted import as_documents, predict_documents
from lmjax.runs.trained import load_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.interop.test_classifiers import SIZES, byte_pairs, word_piece  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]

RECORDS = [
    {"context": "an owl sees", "choices": ["the old river", "a house", "x"]},
    {"context": "the king goes", "question": "never", "choices": ["under trees", "an owl"]},
    {"question": "a house", "choices": ["x", "the river", "the king sees a house", "goes"]},
]


def _bert(name, **fields):
    tokenizer = getattr(transformers, f"{name}Tokenizer")(**word_piece())
    return tokenizer, getattr(transformers, f"{name}Config")(vocab_size=80, max_position_embeddings=64, **fields)


def _roberta():
    tokenizer = transformers.RobertaTokenizer(**byte_pairs("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    return tokenizer, transformers.RobertaConfig(vocab_size=310, type_vocab_size=1, max_position_embeddings=66, **SIZES)


def _modernbert():
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=transformers.BertTokenizerFast(**word_piece()).backend_tokenizer, pad_token="[PAD]",
        cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"])  # fmt: skip
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    return tokenizer, transformers.ModernBertConfig(
        vocab_size=80, max_position_embeddings=64, local_attention=8, classifier_pooling="mean", **ids, **SIZES
    )


FAMILIES = {
    "bert": lambda: _bert("Bert", **SIZES),
    "albert": lambda: (_bert("Bert")[0], transformers.AlbertConfig(
        vocab_size=80, max_position_embeddings=64, embedding_size=8, type_vocab_size=2, pad_token_id=0, **SIZES)),
    "electra": lambda: _bert("Electra", embedding_size=8, **SIZES),
    "distilbert": lambda: _bert("DistilBert", dim=16, n_layers=2, n_heads=2, hidden_dim=24),
    "roberta": _roberta,
    "modernbert": _modernbert,
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def written(request, tmp_path_factory):
    """The folder of a random model as transformers writes it, with the model and its tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    tokenizer, config = FAMILIES[request.param]()
    model = transformers.AutoModelForMultipleChoice.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def probabilities(model, tokenizer):
    found = []
    for record in RECORDS:
        context, question = record.get("context"), record.get("question", "")
        first, before = (question, "") if context is None else (context, f"{question} " if question else "")
        pairs = [(first, before + choice) for choice in record["choices"]]
        given = tokenizer([a for a, _ in pairs], [b for _, b in pairs], return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = model(**{name: x[None] for name, x in given.items()}).logits[0]
        found.append(torch.softmax(logits, -1).numpy())
    return np.concatenate(found)


def predicted(folder):
    loaded = load_model(folder)
    found = predict_documents(loaded, as_documents(RECORDS, loaded.task, gold=False))
    return np.concatenate([each["scores"] for each in found])


def test_choices_have_the_probabilities_of_transformers_and_go_back(written, tmp_path):
    """In; fine-tuned on; and out, with the probabilities of the fine-tuned model."""
    folder, model, tokenizer = written
    expected = probabilities(model, tokenizer)
    np.testing.assert_allclose(predicted(folder), expected, atol=1e-5)
    for name in ("a", "dev"):
        lines = [json.dumps(record | {"label": 1}) for record in RECORDS]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    run(["train", f"--init_from={folder}", "--objective=multiple_choice", f"--data={tmp_path / 'a.jsonl'}",
         f"--eval_data=dev={tmp_path / 'dev.jsonl'}", f"--workdir={tmp_path / 'run'}", "--steps=2", "--lr=0.01",
         "--batch_size=8", "--config.task.length=64", "--config.logging.tensorboard=false",
         "--noprogress"])  # fmt: skip
    run(["convert", f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"])
    after = predicted(tmp_path / "run")
    assert np.abs(after - expected).max() > 1e-3
    # The library that trains the tokenizer breaks ties by chance, so that the texts' ids, and these numbers, vary.
    assert max(map(np.ptp, (after[:3], after[3:5], after[5:]))) > 1e-3, "the scores of all choices are alike"
    out = transformers.AutoModelForMultipleChoice.from_pretrained(tmp_path / "out").eval()
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(probabilities(out, again), after, atol=1e-5)
    np.testing.assert_allclose(predicted(tmp_path / "out"), after, atol=1e-5)
