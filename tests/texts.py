"""Texts on which tokenizers are compared, and are trained: scripts, code, odd white space, spelled tokens."""

import argparse
import io
import itertools
import pathlib

import sentencepiece

SAMPLES = (
    "",
    " ",
    "x ",
    " x",
    "  two  spaces  ",
    "def f():\n\treturn 1\n\n        deep\r\nCRLF\r\n",
    "\n\n\n",
    "\tx\t",
    "Grüße aus Köln: Äpfel, Öl und Straße. naïve café",
    "快速的棕色狐狸跳过懒狗。",
    "🙂🏳️‍🌈 🇩🇪👨‍👩‍👧 e\u0301 \u00a0\u3000",
    "[MASK] a<extra_id_0> b </s>c[PAD] <0x41> <unk> [UNK] <|endoftext|>d <s>",
    "\x00\x01\x7f\x85\ufffd\ufeff",
    "a\u2581b \u2581\u2581",
    "ﬁ ½ Ⅷ ＡＢＣ １２ ㌔",  # noqa: RUF001
    "\u200b\u200d\u2028\u2029 a\u00adb",
    "HELLO World's don't 12345 ``quoted''",
    b"\xff\xfe\x80abc".decode("latin-1"),
    b"\xff\xfe\x80abc".decode(errors="replace"),
)


def library_lines(count: int) -> list[str]:
    """The first lines of the standard library's modules in the order of their names."""
    files = sorted(pathlib.Path(argparse.__file__).parent.glob("[a-z]*.py"))
    lines = (line for file in files for line in file.read_text(encoding="utf-8").split("\n"))
    return list(itertools.islice(lines, count))


def training_lines() -> list[str]:
    """About 100 KB: code, and enough of other scripts that their characters are in a small vocabulary."""
    return library_lines(2400) + [*SAMPLES[8:10], "текст и ещё"] * 20


def sentencepiece_model(**options: object) -> bytes:
    """A SentencePiece model that was trained elsewhere, with the library's own defaults."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_lines()), model_writer=buffer, minloglevel=2, **options
    )
    return buffer.getvalue()
