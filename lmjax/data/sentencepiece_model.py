"""The file of a SentencePiece model: its parts, checked, and the special tokens of lmjax in it."""

import collections
import math
import subprocess
import sys
from typing import Any

import sentencepiece

NUM_SENTINELS = 100
PAD, UNK, BOS, EOS, CLS, SEP, MASK = "[PAD]", "[UNK]", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]"
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(NUM_SENTINELS))

SPACE = "\u2581"  # what a space is in a piece


def parsed(proto: bytes) -> Any:
    """Returns the parsed protocol buffer of a SentencePiece model.

    Raises:
        ValueError: the bytes are not a complete model.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(proto)
    except DecodeError as error:
        raise ValueError("not a SentencePiece model") from error
    # The settings follow the pieces in the file, so a file that is truncated between two pieces lacks them.
    if not model.pieces or not model.HasField("trainer_spec") or not model.HasField("normalizer_spec"):
        raise ValueError("not a whole SentencePiece model")
    names = [piece.piece for piece in model.pieces]
    if len(set(names)) < len(names):
        twice = next(name for name, count in collections.Counter(names).items() if count > 1)
        raise ValueError(f"two of its ids have one piece, {twice!r}")
    if odd := next((piece for piece in model.pieces if not math.isfinite(piece.score)), None):
        raise ValueError(f"the score of its piece {odd.piece!r} is {odd.score}")
    return model


def splits_lines(model: Any) -> bool:
    """Returns whether a line feed is always a separate token of a parsed model, and text is not normalised."""
    spec = model.normalizer_spec
    if spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces:
        return False
    with_one = [(p.piece, p.type) for p in model.pieces if "\n" in p.piece]
    return with_one == [("\n", model.SentencePiece.USER_DEFINED)]


def piece_bytes(model: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    """Returns the bytes that the token represents; empty for one that is not text."""
    piece = model.id_to_piece(token)
    if model.is_byte(token):
        return bytes([int(piece[1:-1], 16)])
    if model.is_control(token) or model.is_unknown(token) or model.is_unused(token):
        return b""
    return piece.replace(SPACE, " ").encode()


def with_special_pieces(proto: bytes) -> bytes:
    """Returns the model with all special tokens, as control symbols.

    Raises:
        ValueError: the bytes are not a complete model.
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
            known[symbol].type = control  # otherwise text with the same characters would be encoded as this token
        else:
            model.pieces.add(piece=symbol, score=0.0, type=control)
    return model.SerializeToString(deterministic=True)


_TRIAL = (
    "import sys, sentencepiece; m = sentencepiece.SentencePieceProcessor(model_proto=sys.stdin.buffer.read()); "
    "m.decode(m.encode('a b')); m.decode(list(range(m.get_piece_size())))"
)


def try_in_other_process(proto: bytes) -> None:
    """Raises an error of `subprocess` if a process that loads and uses the model ends badly; some files crash it."""
    # With -P, Python does not import modules with these names from the current folder.
    subprocess.run([sys.executable, "-P", "-c", _TRIAL], input=proto, check=True, capture_output=True, timeout=60)
