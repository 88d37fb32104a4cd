"""SentencePiece tokenizers, trained or loaded, with the special symbols of all objectives in one layout.

Every tokenizer that lmjax trains begins with the same ids:

| id | piece | |
|---|---|---|
| 0 | `[PAD]` | padding |
| 1 | `[UNK]` | a character outside the vocabulary (never seen with byte fallback) |
| 2, 3 | `<s>`, `</s>` | begin and end of a text |
| 4, 5, 6 | `[CLS]`, `[SEP]`, `[MASK]` | BERT's symbols |
| 7 .. 106 | `<extra_id_0>` .. `<extra_id_99>` | T5's sentinels |
| 107 | a line feed | text, and always a token of its own |
| 108 .. 363 | `<0x00>` .. `<0xFF>` | text: the byte fallback, where it is on |
| the rest | learned | text |

The symbols are control symbols, so text that spells "[MASK]" is never read as one. A loaded `.model` keeps its own ids,
and the symbols that it lacks come after them.

A trained tokenizer with byte fallback gives back exactly the text that it read: nothing is normalised, nothing is put
in front, no white space is dropped. The exceptions: U+2581, with which SentencePiece itself writes a space, comes back
as a space; without byte fallback an unknown character is lost; a loaded `.model` normalises as it was trained to.
"""

import hashlib
import heapq
import io
import pathlib
import random
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import pydantic
import sentencepiece

from lmjax.errors import DataError, FlagError
from lmjax.schema import Schema

NUM_SENTINELS = 100
PAD, UNK, BOS, EOS, CLS, SEP, MASK = "[PAD]", "[UNK]", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]"
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(NUM_SENTINELS))

_SPACE = "\u2581"
_TRAINING_THREADS = 4  # fixed: the sums of the EM steps, and so the model, depend on it
_CHUNK_CHARS = 16_384  # the unit of sampling
_LINE_CHARS = 1_000  # SentencePiece leaves out training lines of more than 4192 bytes
_ENCODE_CHARS = 65_536  # longer texts are encoded in parts, so that the lattice stays small


class TokenizerConfig(Schema):
    """Which tokenizer a run uses.

    `vocab_size` counts the special symbols, the byte pieces and the learned pieces; with `kind="char"` the characters
    of the text decide and it is not used. `sample_bytes` bounds the text that training sees, drawn from all documents.
    """

    path: str = pydantic.Field("", description="a SentencePiece .model to load; empty: one is trained")
    kind: Literal["unigram", "bpe", "char"] = "bpe"
    vocab_size: int = pydantic.Field(4096, gt=0)
    byte_fallback: bool = True
    sample_bytes: int = pydantic.Field(10_000_000, gt=0)


class Tokenizer:
    """Text to token ids and back; the ids of the special symbols; what each token stands for.

    Picklable: it is rebuilt from the bytes of its model.

    Attributes:
      vocab_size: number of ids.
      pad_id, unk_id, bos_id, eos_id, cls_id, sep_id, mask_id: ids of the special symbols.
      sentinel_ids: `[100]` int32, of `<extra_id_0>` and on.
      special_ids: frozenset of every id that is not text.
      is_text: `[vocab_size]` bool, whether the token stands for text.
      text_ids: int32, the ids of all tokens that do.
      token_bytes: `[vocab_size]` int32, UTF-8 bytes that the token stands for: 0 for a special one, 1 for a byte piece.
      word_start: `[vocab_size]` bool, whether the token begins a word (or is white space, punctuation or special): a
        word is such a token and those after it up to the next, for whole-word masking.
      fingerprint: hex digest of the model.
    """

    def __init__(self, proto: bytes):
        self._proto = proto
        self._model = model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self.vocab_size = model.get_piece_size()
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = (
            model.pad_id(),
            model.unk_id(),
            model.bos_id(),
            model.eos_id(),
        )
        self.cls_id, self.sep_id, self.mask_id = (model.piece_to_id(piece) for piece in (CLS, SEP, MASK))
        self.sentinel_ids = np.array([model.piece_to_id(piece) for piece in SENTINELS], np.int32)
        ids = range(self.vocab_size)
        self.special_ids = frozenset(i for i in ids if model.is_control(i) or model.is_unknown(i) or model.is_unused(i))
        self.is_text = np.array([i not in self.special_ids for i in ids], np.bool_)
        self.text_ids = np.flatnonzero(self.is_text).astype(np.int32)
        pieces = [_piece_bytes(model, i) for i in ids]
        self.token_bytes = np.array([len(piece) for piece in pieces], np.int32)
        self.word_start = np.array([_starts_word(piece) for piece in pieces], np.bool_)
        self.fingerprint = hashlib.blake2b(proto, digest_size=16).hexdigest()

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """The tokenizer of a SentencePiece `.model` file, with the special symbols that it lacks after its own pieces.

        A damaged file can crash SentencePiece's C++ code, so a process of its own tries the file first.

        Raises:
          FlagError: the file is absent, empty, truncated or not a SentencePiece model.
        """
        try:
            proto = pathlib.Path(path).expanduser().read_bytes()
        except OSError as error:
            raise FlagError(
                f"tokenizer.path: cannot read {path!r} ({error.strerror}); name a SentencePiece .model file, or leave "
                "it empty to train one"
            ) from error
        try:
            proto = _with_special_pieces(proto)
            _try_in_other_process(proto)
            return cls(proto)
        except (ValueError, RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise FlagError(
                f"tokenizer.path: {path!r} ({len(proto)} bytes) is not a whole SentencePiece model; copy it again, or "
                "leave the path empty to train one"
            ) from error

    def save(self, path: str) -> None:
        """Writes the model to `path`; a killed write leaves no half of it there."""
        target = pathlib.Path(path)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        temporary.write_bytes(self._proto)
        temporary.replace(target)

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, without special symbols."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """The token ids of each text, without special symbols, computed by `threads` threads."""
        parts, counts = [], []
        for text in texts:
            cut = list(_chunks(text, _ENCODE_CHARS))
            parts += cut
            counts.append(len(cut))
        encoded = iter(self._model.encode(parts, num_threads=threads)) if parts else iter(())
        return [_joined([next(encoded) for _ in range(count)]) for count in counts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; special symbols leave nothing, bytes that are not UTF-8 become U+FFFD."""
        return self._model.decode([int(i) for i in ids])

    def __reduce__(self):
        return Tokenizer, (self._proto,)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """A tokenizer trained on a sample of `texts`; the same texts and config give the same one.

    Unigram models: Kudo 2018, arXiv:1804.10959; BPE: Sennrich et al. 2016, arXiv:1508.07909; both as in SentencePiece.

    Raises:
      DataError: there is no text.
      FlagError: the vocabulary is too small for the symbols and characters, or larger than the text can fill.
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
    return Tokenizer(buffer.getvalue())


def _size_error(message: str, config: TokenizerConfig) -> Exception:
    """SentencePiece's complaint about the size, in the words of the config; anything else as it is."""
    small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if small:
        return FlagError(
            f"tokenizer.vocab_size: {config.vocab_size} is too small: special symbols, byte pieces and the characters "
            f"of the training text need at least {small[1]}"
        )
    large = re.search(r"Vocabulary size too high .* value <= (\d+)", message)
    if large:
        return FlagError(
            f"tokenizer.vocab_size: {config.vocab_size} is more than the training text can fill: give at most "
            f"{large[1]}, or more text"
        )
    return RuntimeError(f"SentencePiece could not train: {message}")


def _sample(texts: Iterable[str], limit: int) -> list[str]:
    """Chunks of the texts, in their order: all of them, or a uniform sample of at most `limit` UTF-8 bytes.

    Each chunk draws a number, and the chunks with the smallest ones stay: one pass over a stream, bounded memory.
    """
    draw = random.Random(0)
    heap, total = [], 0  # the largest draw is at the front
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
    """Consecutive parts of `text` of at most `size` characters, cut in front of white space where there is some."""
    start = 0
    while len(text) - start > size:
        cuts = (text.rfind(space, start + size // 2, start + size) for space in ("\n", " "))
        cut = next((cut for cut in cuts if cut > start), start + size)
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def _training_lines(text: str) -> Iterator[str]:
    # A line feed is a symbol of its own whatever stands around it: training needs none.
    return (part for line in text.split("\n") for part in _chunks(line, _LINE_CHARS))


def _joined(parts: list[list[int]]) -> list[int]:
    return parts[0] if len(parts) == 1 else [token for part in parts for token in part]


def _piece_bytes(model: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    """What the token stands for; empty for one that is not text."""
    piece = model.id_to_piece(token)
    if model.is_byte(token):
        return bytes([int(piece[1:-1], 16)])
    if model.is_control(token) or model.is_unknown(token) or model.is_unused(token):
        return b""
    return piece.replace(_SPACE, " ").encode()


def _starts_word(piece: bytes) -> bool:
    """Whether a new word begins at this piece.

    Words are runs of letters, digits and underscores with the white space before them; every other character begins one
    of its own, and so do ideographs, as BERT's basic tokenizer has it (Devlin et al. 2018, arXiv:1810.04805, A.1). A
    lone byte is judged by the characters that it can begin.
    """
    if not piece:
        return True
    first = piece.decode(errors="ignore")[:1]
    if not first:
        return piece[0] >= 0xE0  # of three or four bytes: ideographs, symbols, emoji
    return not (first.isalnum() or first == "_") or "\u3040" <= first <= "\u9fff" or first >= "\U00020000"


def _with_special_pieces(proto: bytes) -> bytes:
    """The model with every special symbol in it as a control symbol.

    Raises:
      ValueError: the bytes are not a whole model.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(proto)
    except DecodeError as error:
        raise ValueError("not a SentencePiece model") from error
    # The settings stand behind the pieces: a file that was cut between two pieces lacks them.
    if not model.pieces or not model.HasField("trainer_spec") or not model.HasField("normalizer_spec"):
        raise ValueError("not a whole SentencePiece model")
    known = {piece.piece: piece for piece in model.pieces}
    control = model.SentencePiece.CONTROL
    spec = model.trainer_spec
    wanted = [CLS, SEP, MASK, *SENTINELS]
    for field, symbol in (("pad_piece", PAD), ("bos_piece", BOS), ("eos_piece", EOS)):
        if getattr(spec, field) not in known:
            setattr(spec, field, symbol)
        wanted.append(getattr(spec, field))
    for symbol in wanted:
        if symbol in known:
            known[symbol].type = control  # else text could spell it
        else:
            model.pieces.add(piece=symbol, score=0.0, type=control)
    return model.SerializeToString(deterministic=True)


_TRIAL = (
    "import sys, sentencepiece; m = sentencepiece.SentencePieceProcessor(model_proto=sys.stdin.buffer.read()); "
    "m.decode(m.encode('a b')); m.decode(list(range(m.get_piece_size())))"
)


def _try_in_other_process(proto: bytes) -> None:
    subprocess.run([sys.executable, "-c", _TRIAL], input=proto, check=True, capture_output=True, timeout=60)
