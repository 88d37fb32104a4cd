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
and the symbols that it lacks come after them. (The tokenizer of a checkpoint is read by `fast_tokenizer`, as it is.)

A trained tokenizer with byte fallback gives back exactly the text that it read: nothing is normalised, nothing is put
in front, no white space is dropped. The exceptions: U+2581, with which SentencePiece itself writes a space, comes back
as a space; without byte fallback an unknown character is lost; a loaded `.model` normalises as it was trained to.
"""

import hashlib
import heapq
import io
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pydantic
import sentencepiece

from lmjax.data.long_texts import Located
from lmjax.data.vocabulary import Vocabulary, write_whole
from lmjax.errors import DataError, FlagError
from lmjax.paths import expanded
from lmjax.schema import Schema
from lmjax.streams import random_stream

NUM_SENTINELS = 100
PAD, UNK, BOS, EOS, CLS, SEP, MASK = "[PAD]", "[UNK]", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]"
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(NUM_SENTINELS))

_SPACE = "\u2581"
_TRAINING_THREADS = 4  # fixed: the sums of the EM steps, and so the model, depend on it
_CHUNK_CHARS = 16_384  # the unit of sampling
_LINE_CHARS = 1_000  # SentencePiece leaves out training lines of more than 4192 bytes
_SCORE_STEPS = 512


class TokenizerConfig(Schema):
    """Which tokenizer a run uses.

    `vocab_size` counts the special symbols, the byte pieces and the learned pieces; with `kind="char"` the characters
    of the text decide and it is not used. `sample_bytes` bounds the text that training sees, drawn from all documents.
    """

    path: str = pydantic.Field(
        "", description="a .model, a tokenizer.json or a folder with one to load; empty: one is trained"
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
    """A SentencePiece model; `Vocabulary` says what its attributes are.

    Picklable: it is rebuilt from the bytes of its model, `proto`.
    """

    def __init__(self, proto: bytes):
        self.proto = proto
        self._model = model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        roles = {"pad": model.pad_id(), "unk": model.unk_id(), "bos": model.bos_id(), "eos": model.eos_id()}
        roles |= {role: model.piece_to_id(piece) for role, piece in (("cls", CLS), ("sep", SEP), ("mask", MASK))}
        ids = range(model.get_piece_size())
        super().__init__(
            [_piece_bytes(model, i) for i in ids],
            [i for i in ids if model.is_control(i) or model.is_unknown(i) or model.is_unused(i)],
            roles,
            [model.piece_to_id(piece) for piece in SENTINELS],
        )
        settings = parsed(proto)
        self._line_feed = model.piece_to_id("\n") if splits_lines(settings) else None
        self._byte_pairs = settings.trainer_spec.model_type == settings.trainer_spec.BPE
        self.fingerprint = hashlib.blake2b(proto, digest_size=16).hexdigest()

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """The tokenizer of a SentencePiece `.model` file, with the special symbols that it lacks after its own pieces.

        A damaged file can crash SentencePiece's C++ code, so a process of its own tries the file first.

        Raises:
          FlagError: the file is absent, empty, truncated or not a SentencePiece model.
        """
        try:
            proto = expanded(path).read_bytes()
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
        write_whole(pathlib.Path(path), self.proto)

    def save_in(self, folder: pathlib.Path) -> None:
        """Writes `tokenizer.model` into `folder`."""
        self.save(str(folder / "tokenizer.model"))

    def _lines(self, text: str) -> list[str]:
        """What of a text is encoded by itself.

        Where a line feed is a token whatever stands around it, these are the lines: sums of scores then stay small, and
        so exact, in a unigram model.
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
        del parts  # a SentencePiece model sees a text as one
        encoded = zip(texts, self._encode(texts, threads), strict=True)
        return [self._spelled(text, ids) or self._mapped(text) for text, ids in encoded]

    def _mapped(self, text: str) -> Located:
        """The tokens of a text that they do not spell, with the places that SentencePiece gives."""
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
        """The text of token ids; special symbols leave nothing, bytes that are not UTF-8 become U+FFFD."""
        return self._model.decode([int(i) for i in ids])

    def __reduce__(self):
        return Tokenizer, (self.proto,)


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
    return Tokenizer(_with_round_scores(buffer.getvalue()) if config.kind == "unigram" else buffer.getvalue())


def _with_round_scores(proto: bytes) -> bytes:
    """The model with its scores in steps of 1/512 nat.

    Many ways to cut a run of spaces have the same score. With steps, the sums over a line are exact in float32 as in
    float64 (up to 32,768 nats), so ties stay ties, and every implementation breaks them alike.
    """
    model = parsed(proto)
    for piece in model.pieces:
        piece.score = round(piece.score * _SCORE_STEPS) / _SCORE_STEPS
    return model.SerializeToString(deterministic=True)


def _size_error(message: str, config: TokenizerConfig) -> Exception:
    """SentencePiece's complaint about the size, in the words of the config; anything else as it is."""
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
    """Chunks of the texts, in their order: all of them, or a uniform sample of at most `limit` UTF-8 bytes.

    Each chunk draws a number, and the chunks with the smallest ones stay: one pass over a stream, bounded memory.
    """
    draw = random_stream(0, "tokenizer")
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


def parsed(proto: bytes) -> Any:
    """The protocol buffer of a SentencePiece model.

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
    return model


def splits_lines(model: Any) -> bool:
    """Whether a line feed is a token of a parsed model whatever stands around it, and nothing is normalised."""
    spec = model.normalizer_spec
    if spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces:
        return False
    with_one = [(p.piece, p.type) for p in model.pieces if "\n" in p.piece]
    return with_one == [("\n", model.SentencePiece.USER_DEFINED)]


def _piece_bytes(model: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    """What the token stands for; empty for one that is not text."""
    piece = model.id_to_piece(token)
    if model.is_byte(token):
        return bytes([int(piece[1:-1], 16)])
    if model.is_control(token) or model.is_unknown(token) or model.is_unused(token):
        return b""
    return piece.replace(_SPACE, " ").encode()


def _with_special_pieces(proto: bytes) -> bytes:
    """The model with every special symbol in it as a control symbol.

    Raises:
      ValueError: the bytes are not a whole model.
    """
    model = parsed(proto)
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
