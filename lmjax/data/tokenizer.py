"""SentencePiece tokenizers, trained or loaded, which have the special tokens of all objectives.

Every tokenizer that lmjax trains begins with the same ids:

| id | token | |
|---|---|---|
| 0 | `[PAD]` | padding |
| 1 | `[UNK]` | a character outside the vocabulary (never used with byte fallback) |
| 2, 3 | `<s>`, `</s>` | begin and end of a text |
| 4, 5, 6 | `[CLS]`, `[SEP]`, `[MASK]` | BERT's special tokens |
| 7 .. 106 | `<extra_id_0>` .. `<extra_id_99>` | T5's sentinels |
| 107 | a line feed | text, and always a separate token |
| 108 .. 363 | `<0x00>` .. `<0xFF>` | text: the byte fallback, if it is on |
| the rest | learned | text |

The special tokens are control symbols of SentencePiece, so the text "[MASK]" is never encoded as the mask token. A
loaded `.model` has its own ids, and the special tokens that it lacks are added after them.

A trained tokenizer with byte fallback decodes exactly the text that it encoded: it does not normalise, adds no space
before a text and removes no white space. U+2581 is an exception: SentencePiece represents a space by it, so it is
decoded as a space. Without byte fallback unknown characters are lost, and a loaded `.model` may normalise the text.
"""

import hashlib
import heapq
import io
import pathlib
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import pydantic
import sentencepiece

from lmjax.data.long_texts import Located
from lmjax.data.sentencepiece_model import (
    BOS,
    CLS,
    EOS,
    MASK,
    PAD,
    SENTINELS,
    SEP,
    UNK,
    parsed,
    piece_bytes,
    splits_lines,
    try_in_other_process,
    with_special_pieces,
)
from lmjax.data.vocabulary import TEMPLATE, Vocabulary, write_whole
from lmjax.errors import DataError, FlagError
from lmjax.paths import expanded, read_regular
from lmjax.schema import Schema
from lmjax.streams import random_stream

_TRAINING_THREADS = 4  # constant, because the sums of the EM steps, and so the model, depend on it
_CHUNK_CHARS = 16_384  # the training sample consists of chunks of this size
_LINE_CHARS = 1_000  # SentencePiece leaves out training lines of more than 4192 bytes
_SCORE_STEPS = 512


class TokenizerConfig(Schema):
    """Settings of the tokenizer: which one is loaded, or how one is trained."""

    path: str = pydantic.Field(
        "", description="a .model, a tokenizer.json or a folder with one to load; empty: one is trained"
    )
    added: tuple[Literal["pad", "bos", "eos", "cls", "sep", "mask"], ...] = pydantic.Field(
        (), description="special tokens that a loaded tokenizer gets if it lacks them, such as cls,sep,mask"
    )
    kind: Literal["unigram", "bpe", "char"] = pydantic.Field("bpe", description="algorithm of one that is trained")
    vocab_size: int = pydantic.Field(
        4096, gt=0, description="special symbols, bytes and learned pieces together; not read by char"
    )
    byte_fallback: bool = pydantic.Field(True, description="what no piece covers becomes bytes instead of unknown")
    sample_bytes: int = pydantic.Field(
        10_000_000, gt=0, description="most bytes of text that it is trained on, drawn from all documents"
    )


class Tokenizer(Vocabulary):
    """A SentencePiece tokenizer; `Vocabulary` documents its attributes.

    Picklable: only the bytes of its model, `proto`, and the chat template are pickled.
    """

    def __init__(self, proto: bytes, chat_template: str = ""):
        self.proto, self.chat_template = proto, chat_template
        self._model = model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        roles = {"pad": model.pad_id(), "unk": model.unk_id(), "bos": model.bos_id(), "eos": model.eos_id()}
        roles |= {role: model.piece_to_id(piece) for role, piece in (("cls", CLS), ("sep", SEP), ("mask", MASK))}
        ids = range(model.get_piece_size())
        super().__init__(
            [piece_bytes(model, i) for i in ids],
            [i for i in ids if model.is_control(i) or model.is_unknown(i) or model.is_unused(i)],
            roles,
            [model.piece_to_id(piece) for piece in SENTINELS],
        )
        self.special_texts = {model.id_to_piece(i): i for i in ids if model.is_control(i)}
        settings = parsed(proto)
        self._line_feed = model.piece_to_id("\n") if splits_lines(settings) else None
        self._byte_pairs = settings.trainer_spec.model_type == settings.trainer_spec.BPE
        self.fingerprint = hashlib.blake2b(proto, digest_size=16).hexdigest()

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """Returns the tokenizer of a SentencePiece `.model` file, with missing special tokens added after its own ids.

        A damaged file can crash SentencePiece's C++ code, so the file is first loaded in another process.

        Raises:
            FlagError: the file is absent, empty, truncated or not a SentencePiece model.
        """
        try:
            proto = read_regular(expanded(path))
        except OSError as error:
            raise FlagError(
                f"tokenizer.path: cannot read {path!r} ({error.strerror}); name a SentencePiece .model file, or leave "
                "it empty to train one"
            ) from error
        try:
            proto = with_special_pieces(proto)
            try_in_other_process(proto)
            return cls(proto)
        except (ValueError, RuntimeError, OSError, subprocess.SubprocessError) as error:
            said = f" ({str(error)[:200]})" if isinstance(error, ValueError) else ""
            raise FlagError(
                f"tokenizer.path: {path!r} ({len(proto)} bytes) is not a whole SentencePiece model{said}; copy it "
                "again, or leave the path empty to train one"
            ) from error

    def save(self, path: str) -> None:
        """Writes the model to `path`; an interrupted write leaves no partial file."""
        write_whole(pathlib.Path(path), self.proto)

    def save_in(self, folder: pathlib.Path) -> None:
        """Writes `tokenizer.model` into `folder`, and the chat template if there is one."""
        if self.chat_template:
            write_whole(folder / TEMPLATE, self.chat_template.encode())
        self.save(str(folder / "tokenizer.model"))

    def with_template(self, template: str) -> "Tokenizer":
        """Returns the same tokenizer with another chat template."""
        return Tokenizer(self.proto, template)

    def with_special(self, roles: Sequence[str]) -> "Tokenizer":
        """Returns this tokenizer, which has all special tokens."""
        del roles
        return self

    def _lines(self, text: str) -> list[str]:
        """Returns the parts of a text that are encoded separately.

        These are the lines, if a line feed is always a separate token. The sums of scores in a unigram model are then
        small enough to be exact.
        """
        return [text] if self._line_feed is None else text.split("\n")

    def _encode(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        lines = [self._lines(text) for text in texts]
        encoded = iter(self._model.encode([line for text in lines for line in text], num_threads=threads))
        found = []
        for text in lines:
            ids = next(encoded)
            for _ in text[1:]:
                ids.append(self._line_feed)
                ids += next(encoded)
            found.append(ids)
        return found

    def _locate(self, texts: Sequence[str], threads: int, parts: bool) -> list[Located]:
        del parts  # SentencePiece has no pre-tokenizer, so a text has no parts
        encoded = zip(texts, self._encode(texts, threads), strict=True)
        return [self._spelled(text, ids) or self._mapped(text) for text, ids in encoded]

    def _mapped(self, text: str) -> Located:
        """Returns the tokens of a text whose bytes differ from the text, located by SentencePiece's offsets."""
        ids: list[int] = []
        starts: list[int] = []
        begin = 0
        for number, line in enumerate(self._lines(text)):
            if number:
                ids.append(self._line_feed)
                starts.append(begin - 1)
            mapped = self._model.encode(line, return_type="offset_mapping")
            ids += mapped["ids"]
            starts += [begin + start for start, _ in mapped["offsets"]]
            begin += len(line) + 1
        places = np.maximum.accumulate(np.array(starts, np.int64))
        return Located(np.array(ids, np.int32), places, np.zeros(len(ids), np.bool_))

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids, without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return self._model.decode([int(i) for i in ids])

    def __reduce__(self):
        return Tokenizer, (self.proto, self.chat_template)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Returns a tokenizer trained on a sample of `texts`; the same texts and config give the same tokenizer.

    Unigram models: Kudo 2018, arXiv:1804.10959; BPE: Sennrich et al. 2016, arXiv:1508.07909; both as in SentencePiece.

    Raises:
        DataError: there is no text.
        FlagError: the vocabulary size is too small for the special tokens and characters, or too large for the text.
    """
    buffer = io.BytesIO()
    lines = [line for text in _sample(texts, config.sample_bytes) for line in _training_lines(text)]
    if not any(not line.isspace() for line in lines):
        raise DataError("tokenizer: the training text is empty; check what --data names")
    whole = config.kind == "char" or not config.byte_fallback
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=buffer,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            use_all_vocab=config.kind == "char",
            character_coverage=1.0 if whole else 0.9995,
            byte_fallback=config.byte_fallback,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            control_symbols=[CLS, SEP, MASK, *SENTINELS],
            user_defined_symbols=["\n"],
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=PAD,
            unk_piece=UNK,
            bos_piece=BOS,
            eos_piece=EOS,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _size_error(str(error), config) from error
    return Tokenizer(_with_round_scores(buffer.getvalue()) if config.kind == "unigram" else buffer.getvalue())


def _with_round_scores(proto: bytes) -> bytes:
    """Returns the model with its scores rounded to multiples of 1/512 nat.

    Several tokenisations of a sequence of spaces can have the same score. With rounded scores the sum over a line is
    exact in float32 and float64 (up to 32,768 nats), so equal scores are equal in every implementation, and each makes
    the same choice between them.
    """
    model = parsed(proto)
    for piece in model.pieces:
        piece.score = round(piece.score * _SCORE_STEPS) / _SCORE_STEPS
    return model.SerializeToString(deterministic=True)


def _size_error(message: str, config: TokenizerConfig) -> Exception:
    """Returns an error that names the config field for SentencePiece's message about the size, or a RuntimeError."""
    small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if small:
        return FlagError(
            f"--config.tokenizer.vocab_size={config.vocab_size}: too small: special symbols, bytes and the characters "
            f"of the training text need at least {small[1]}"
        )
    large = re.search(r"Vocabulary size too high .* value <= (\d+)", message)
    if large:
        return FlagError(
            f"--config.tokenizer.vocab_size={config.vocab_size}: more than the training text can fill: give at most "
            f"{large[1]}, or more text"
        )
    return RuntimeError(f"SentencePiece could not train: {message}")


def _sample(texts: Iterable[str], limit: int) -> list[str]:
    """Returns chunks of the texts, in order: all of them, or a uniform sample of at most `limit` UTF-8 bytes.

    Each chunk gets a random number, and those with the smallest numbers are the sample. This needs one pass over the
    stream and bounded memory.
    """
    draw = random_stream(0, "tokenizer")
    heap, total = [], 0  # the chunk with the largest random number is first
    for number, chunk in enumerate(chunk for text in texts for chunk in _chunks(text, _CHUNK_CHARS)):
        size = len(chunk.encode())
        if size > limit:
            chunk = chunk.encode()[:limit].decode(errors="ignore")
            size = limit
        heapq.heappush(heap, (-draw.random(), number, size, chunk))
        total += size
        while total > limit:
            total -= heapq.heappop(heap)[2]
    return [chunk for _, _, _, chunk in sorted(heap, key=lambda item: item[1])]


def _chunks(text: str, size: int) -> Iterator[str]:
    """Yields consecutive parts of `text` of at most `size` characters, split before white space if possible."""
    start = 0
    while len(text) - start > size:
        cuts = (text.rfind(space, start + size // 2, start + size) for space in ("\n", " "))
        cut = next((cut for cut in cuts if cut > start), start + size)
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def _training_lines(text: str) -> Iterator[str]:
    # Lines without their line feeds, because a line feed is always a separate token and need not be learned.
    return (part for line in text.split("\n") for part in _chunks(line, _LINE_CHARS))
