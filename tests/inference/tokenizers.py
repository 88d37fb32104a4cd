"""Tokenizers of every kind for the tests of text streams and constraints; each is trained in a second."""

import functools
import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lmjax.data.fast_tokenizer import TOKENIZER, FastTokenizer
from lmjax.data.sentencepiece_model import with_special_pieces
from lmjax.data.tokenizer import Tokenizer as SentencePieceTokenizer
from lmjax.data.tokenizer import TokenizerConfig, train_tokenizer
from lmjax.data.vocabulary import Vocabulary
from tests.texts import SAMPLES, library_lines, sentencepiece_model

LINES = [*library_lines(300), '{"name": "Ärger", "count": [-12, 3.5e+7], "flag": true, "none": null, "off": false}'] * 2
LINES += [*SAMPLES[8:10], "текст и ещё", "0123456789 .,:;-+[]{}()"]
BYTE_PIECES = [f"<0x{b:02X}>" for b in range(256)]


def _lmjax(kind: str, byte_fallback: bool) -> Vocabulary:
    size = 700 if byte_fallback else 420
    return train_tokenizer(LINES, TokenizerConfig(kind=kind, vocab_size=size, byte_fallback=byte_fallback))


def _fast(fast: Tokenizer, **names: str) -> Vocabulary:
    content = json.loads(fast.to_str())
    # The trainer treats the first token as special; a byte token is text.
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in BYTE_PIECES]
    names = {f"{role}_token": token for role, token in names.items()}
    return FastTokenizer({TOKENIZER: json.dumps(content).encode()}, {**names, "extra_special_tokens": []})


def _byte_level() -> Vocabulary:
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return _fast(fast, eos="<|endoftext|>")


def _llama() -> Vocabulary:
    """Returns a tokenizer with byte tokens that adds a space before a text, which decoding drops."""
    fast = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fast.decoder = decoders.Sequence(parts)
    special = ["<unk>", "<s>", "</s>", *BYTE_PIECES]
    fast.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    return _fast(fast, unk="<unk>", bos="<s>", eos="</s>")


def _word_piece() -> Vocabulary:
    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[SEP]"]
    fast.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    )
    return _fast(fast, unk="[UNK]", pad="[PAD]", sep="[SEP]", eos="[SEP]")


MAKERS = {
    "unigram": lambda: _lmjax("unigram", True),
    "bpe": lambda: _lmjax("bpe", True),
    "bpe_without_bytes": lambda: _lmjax("bpe", False),
    "char": lambda: _lmjax("char", False),
    "foreign": lambda: SentencePieceTokenizer(
        with_special_pieces(sentencepiece_model(model_type="bpe", vocab_size=700, byte_fallback=True))
    ),
    "byte_level": _byte_level,
    "llama": _llama,
    "word_piece": _word_piece,
}


@functools.cache
def tokenizer(kind: str) -> Vocabulary:
    """Returns the tokenizer of a kind: lmjax's own, one with SentencePiece's default settings, or a checkpoint's."""
    return MAKERS[kind]()
