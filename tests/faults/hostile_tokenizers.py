"""Tokenizers that others made: sound files of each kind, changes of them, and what must hold of what is accepted."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from hypothesis import strategies as st

from lmjax.data.fast_tokenizer import FastTokenizer, load_tokenizer
from lmjax.data.sentencepiece_model import parsed
from lmjax.data.vocabulary import Vocabulary
from lmjax.interop.tokenizer_export import export_tokenizer
from tests.faults.fuzzing import changed_bytes, changed_json, changed_sentencepiece
from tests.inference.scoring import tokenizer
from tests.inference.tokenizers import tokenizer as tokenizer_of
from tests.texts import sentencepiece_model

SAMPLE = "The king's house, ``12'' [MASK] <0x41>\n\u2581 \u00e9\U0001f600 </s>"


def is_finite(values: Any) -> bool:
    """Returns whether every number in a value of JSON is finite."""
    if isinstance(values, dict):
        return all(map(is_finite, values.values()))
    if isinstance(values, list | tuple):
        return all(map(is_finite, values))
    return not isinstance(values, float) or math.isfinite(values)


def fast(folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes a tokenizer.json of each kind, and the files beside it; returns all of them."""
    for kind in ("byte_level", "llama", "word_piece"):
        (folder / kind).mkdir()
        tokenizer_of(kind).save_in(folder / kind)
    (folder / "unigram").mkdir()
    export_tokenizer(tokenizer(), folder / "unigram", "gpt2", 16)
    return sorted(folder.glob("*/*.json"))


def older(folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the files of tokenizers of each kind from before tokenizer.json; returns all of them."""
    for name, content in {
        "gpt2/config.json": '{"model_type": "gpt2", "tokenizer_class": "GPT2Tokenizer"}',
        "gpt2/vocab.json": json.dumps({c: i for i, c in enumerate(["a", "b", "c", "\u0120", "ab", "<|endoftext|>"])}),
        "gpt2/merges.txt": "#version: 0.2\na b\n",
        "gpt2/added_tokens.json": '{"<new>": 6}',
        "bert/config.json": '{"model_type": "bert"}',
        "bert/tokenizer_config.json": '{"do_lower_case": true, "strip_accents": null, "extra_special_tokens": []}',
        "bert/special_tokens_map.json": '{"mask_token": {"content": "[MASK]"}}',
        "bert/vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\nking\n",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    model = sentencepiece_model(model_type="unigram", vocab_size=300)
    for kind in ("t5", "albert", "llama"):
        (folder / kind).mkdir()
        (folder / kind / "config.json").write_text(json.dumps({"model_type": kind}))
        bpe = sentencepiece_model(model_type="bpe", vocab_size=500, byte_fallback=True)
        (folder / kind / "spiece.model").write_bytes(bpe if kind == "llama" else model)
    return sorted(path for path in folder.glob("*/*"))


def sentencepiece(folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes a SentencePiece model of each kind; returns all of them."""
    (folder / "lmjax.model").write_bytes(tokenizer().proto)
    for kind, options in {
        "unigram": {"vocab_size": 300},
        "bpe": {"vocab_size": 500, "byte_fallback": True},
        "char": {"vocab_size": 200},
    }.items():
        (folder / f"{kind}.model").write_bytes(sentencepiece_model(model_type=kind, **options))
    return sorted(folder.iterdir())


def changed(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """Returns changes of a file of a tokenizer, by its name."""
    if name.endswith(".model"):
        return changed_sentencepiece(content)
    return changed_json(json.loads(content)) if name.endswith(".json") else changed_bytes(content)


def read(path: pathlib.Path) -> None:
    """Loads the tokenizer of a file, or of its folder if that is a checkpoint's, and uses it."""
    alone = path.suffix == ".model" and not path.with_name("config.json").exists()
    _check(load_tokenizer(str(path if alone else path.parent)))


def _check(found: Vocabulary) -> None:
    """Raises AssertionError for a tokenizer that cannot do what every tokenizer does."""
    [(ids, starts)] = found.locate_batch([SAMPLE])
    assert all(0 <= i < found.vocab_size for i in ids)
    assert all(0 <= start <= len(SAMPLE) for start in starts)
    assert isinstance(found.decode(ids), str)
    assert all(0 <= i < found.vocab_size for i in (*found.role_ids.values(), *found.sentinels))
    if isinstance(found, FastTokenizer):
        found.template()
        ids = list(found._fast.get_vocab().values())
        assert len(set(ids)) == len(ids), "two tokens have one id"
        content = json.loads(found.files["tokenizer.json"])
        assert is_finite(content), "a number of the tokenizer is not finite"
    else:
        pieces = parsed(found.proto).pieces
        assert all(math.isfinite(piece.score) for piece in pieces), "a score is not finite"
        assert len({piece.piece for piece in pieces}) == len(pieces), "two ids have one piece"
