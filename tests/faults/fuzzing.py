"""Sound inputs changed at random, for readers of files that others wrote.

Text and JSON, safetensors headers and SentencePiece models are changed with their structure in view, so that most of
what comes out passes the first checks of a reader; every kind is also cut, flipped and spliced byte by byte.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from lmjax.data.sentencepiece_model import parsed

# Values that a field of JSON may not have expected.
_VALUES = (
    *(None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 2**64, -(2**63), 10**400),
    *(0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf),
    *("", " ", "a", "[MASK]", "</s>", "../x", "\x00", "\ud800", "x" * 300, "1", "none"),
    *([], {}, [[]], [None], [0], [1, 2], ["a", "a"], {"a": 1}, {"": {}}, {"content": "a", "id": 0}),
)
# Bytes at which a reader of text decides something.
_BYTES = (
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", b"\x85", b"\x0c", b"\x1f\x8b\x08"),
    *(b'"', b'""', b"\n", b"\r", b"\r\n", b"\t", b",", b"\\", b"{", b"}", b"[", b"]"),
    *(b"[" * 3000, b"A" * 5000, b"NaN", b"1e999", b"9" * 5000),
)
_SCORES = (math.nan, math.inf, -math.inf, 3e38, 0.0, -1e-40)
_PIECES = ("", " ", "\u2581", "\x00", "<0x41>", "<0xZZ>", "<unk>", "<s>", "[MASK]", "<extra_id_0>", "\n", "x" * 2000)
_NUMBERS = (-(2**31), -2, -1, 0, 1, 2, 5, 300, 2**31 - 1)


@st.composite
def changed_bytes(draw: st.DrawFn, base: bytes) -> bytes:
    """Returns bytes that were cut, flipped or spliced in up to three places."""
    content = bytearray(base)
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(content)))
        end = min(len(content), begin + draw(st.integers(0, 40)))
        how = draw(st.sampled_from(("cut", "flip", "insert", "put", "drop", "repeat")))
        if how == "cut":
            del content[begin:]
        elif how == "flip" and begin < len(content):
            content[begin] ^= 1 << draw(st.integers(0, 7))
        elif how in ("insert", "put"):
            new = draw(st.one_of(st.sampled_from(_BYTES), st.binary(max_size=8)))
            content[begin : end if how == "put" else begin] = new
        elif how == "drop":
            del content[begin:end]
        elif how == "repeat":
            content[begin:begin] = content[begin:end] * draw(st.integers(1, 50))
    return bytes(content)


@st.composite
def changed_json(draw: st.DrawFn, base: Any, encode: Callable[[Any], bytes] | None = None) -> bytes:
    """Returns JSON with up to three values replaced, taken out, copied or given another name.

    Args:
        draw: of hypothesis.
        base: the value.
        encode: what makes a file of the changed value; None: its JSON.
    """
    tree = {"": copy.deepcopy(base)}
    for _ in range(draw(st.integers(1, 3))):
        holder, key = _place(draw, tree)
        how = draw(st.sampled_from(("value", "value", "value", "other", "drop", "name", "near")))
        old = holder[key]
        if how == "value":
            holder[key] = copy.deepcopy(draw(st.sampled_from(_VALUES)))
        elif how == "other":
            elsewhere, at = _place(draw, tree)
            holder[key] = copy.deepcopy(elsewhere[at])
        elif how == "near" and isinstance(old, int | float):
            holder[key] = draw(st.sampled_from((-old, old * 2, old - 1, old * 3 // 2, repr(old)[:300])))
        elif how == "drop" and holder is not tree:
            del holder[key]
        elif how == "name" and isinstance(holder, dict) and holder is not tree:
            holder[draw(st.sampled_from(("", "a", "new_field", *list(holder)[:20])))] = holder.pop(key)
        if "" not in tree:
            break
    content = (encode or (lambda value: json.dumps(value).encode()))(tree.get("", {}))
    return draw(changed_bytes(content)) if draw(st.integers(0, 9)) == 0 else content


def _place(draw: st.DrawFn, tree: Any) -> tuple[Any, Any]:
    """Returns a list or object somewhere in a tree, and a key of it; each level is as likely as the others."""
    holder, key = tree, ""
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 3)):
        holder = holder[key]
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[draw(st.integers(0, len(keys) - 1))]
    return holder, key


def changed_safetensors(base: bytes) -> st.SearchStrategy[bytes]:
    """Returns safetensors files whose header says something else, its length right, or with other bytes."""
    size = int.from_bytes(base[:8], "little")
    header, numbers = json.loads(base[8 : 8 + size]), base[8 + size :]

    def whole(values: Any) -> bytes:
        text = json.dumps(values).encode()
        return len(text).to_bytes(8, "little") + text + numbers

    return st.one_of(changed_json(header, whole), changed_bytes(base), changed_bytes(base[: 8 + size]))


@st.composite
def changed_sentencepiece(draw: st.DrawFn, base: bytes) -> bytes:
    """Returns a SentencePiece model with up to three pieces or settings changed."""
    model = parsed(base)
    for _ in range(draw(st.integers(1, 3))):
        if not model.pieces:
            break
        number = draw(st.integers(0, len(model.pieces) - 1))
        piece = model.pieces[number]
        how = draw(st.sampled_from(("score", "text", "copy", "kind", "drop", "id", "model", "switch", "map", "bytes")))
        if how == "score":
            piece.score = draw(st.sampled_from(_SCORES))
        elif how == "text":
            piece.piece = draw(st.sampled_from(_PIECES))
        elif how == "copy":
            piece.piece = model.pieces[draw(st.integers(0, len(model.pieces) - 1))].piece
        elif how == "kind":
            piece.type = draw(st.integers(1, 6))
        elif how == "drop":
            del model.pieces[number : number + draw(st.sampled_from((1, 3, 1000)))]
        elif how == "id":
            field = draw(st.sampled_from(("unk_id", "bos_id", "eos_id", "pad_id", "vocab_size")))
            setattr(model.trainer_spec, field, draw(st.sampled_from(_NUMBERS)))
        elif how == "model":
            model.trainer_spec.model_type = draw(st.integers(1, 4))
        elif how == "switch":
            spec, field = draw(st.sampled_from(_SWITCHES))
            setattr(getattr(model, spec), field, not getattr(getattr(model, spec), field))
        elif how == "map":
            model.normalizer_spec.precompiled_charsmap = draw(st.one_of(st.binary(max_size=64), st.just(b"\xff" * 12)))
    content = model.SerializePartialToString(deterministic=True)
    return draw(changed_bytes(content)) if draw(st.integers(0, 4)) == 0 else content


_SWITCHES = (
    ("trainer_spec", "byte_fallback"),
    ("trainer_spec", "treat_whitespace_as_suffix"),
    ("normalizer_spec", "add_dummy_prefix"),
    ("normalizer_spec", "remove_extra_whitespaces"),
    ("normalizer_spec", "escape_whitespaces"),
)
