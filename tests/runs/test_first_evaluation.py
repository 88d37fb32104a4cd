"""The evaluation before the first update of a run that starts from a checkpoint equals that of `lmjax evaluate`."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import pre_tokenizers

from lmjax.cli import run
from lmjax.data.fast_tokenizer import TOKENIZER
from tests.data.test_fast_tokenizer import trained
from tests.data.test_long_texts import library

LLAMA = pathlib.Path(__file__).parents[1] / "interop" / "recorded" / "llama"
# With digits and a contraction, which Llama 3's pattern splits differently, and with space at both ends of a line.
TEXTS = [
    "The old king sees 12345 houses. He doesn't count them!",
    "A young queen goes  to the river,\nand never under the tree.",
    "It is the king's house; the queen sees it.",
]


def checkpoint(folder: pathlib.Path, kind: str) -> pathlib.Path:
    """Returns a folder with a tiny Llama with random parameters, and a tokenizer of this kind."""
    tokenizer = trained("llama3") if kind == "llama3" else library(pre_tokenizers.Metaspace(prepend_scheme="always"))
    folder.mkdir()
    (folder / TOKENIZER).write_text(tokenizer.to_str())
    end = "<|endoftext|>" if kind == "llama3" else "<s>"
    names = {"bos_token": end, "eos_token": end, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    size, rng = tokenizer.get_vocab_size(), np.random.default_rng(0)
    end_id = tokenizer.token_to_id(end)
    config = json.loads((LLAMA / "config.json").read_text())
    config |= {"vocab_size": size, "bos_token_id": end_id, "eos_token_id": end_id, "pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(LLAMA / "model.safetensors")
    for name in tensors.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
        tensors[name] = rng.normal(0, 0.5, (size, tensors[name].shape[1])).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def nats_by_transformers(folder: pathlib.Path) -> float:
    """Returns the nats of all texts, each with the token that begins a text before it and the end token predicted."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    nats = 0.0
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        row = torch.tensor([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            scores = torch.log_softmax(model(row).logits[0, :-1], -1)
        nats -= float(scores.gather(-1, row[0, 1:, None]).sum())
    return nats


@pytest.fixture(scope="module", params=["llama3", "metaspace"])
def folder(request, tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def evaluated(folder):
    """Returns the metrics of `lmjax evaluate` for the texts with their end tokens, which training predicts too."""
    texts = folder.parent / "texts.txt"
    texts.write_text("\n\n".join(TEXTS))
    return run(["evaluate", f"--model={folder}", f"--data=t={texts}", "--end"])["t"]


def test_training_starts_where_evaluation_is(folder, evaluated, tmp_path, corpus):
    run(
        ["train", f"--init_from={folder}", f"--data={corpus}", f"--eval_data=t={folder.parent / 'texts.txt'}",
         f"--workdir={tmp_path / 'run'}", "--steps=1", "--length=64", "--batch_size=8", "--noprogress",
         "--config.evaluation.batches=1", "--config.logging.tensorboard=false"]
    )  # fmt: skip
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0
    assert first["eval/t/next_token/loss"] == pytest.approx(evaluated["nats_per_token"], rel=1e-4)
    assert first["eval/t/next_token/bits_per_byte"] == pytest.approx(evaluated["bits_per_byte"], rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_evaluation_is_that_of_transformers(folder, evaluated):
    nats, size = nats_by_transformers(folder), sum(len(text.encode()) for text in TEXTS)
    assert evaluated["nats_per_token"] * evaluated["tokens"] == pytest.approx(nats, rel=1e-3)
    assert evaluated["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, rel=1e-3)
