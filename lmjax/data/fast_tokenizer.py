"""Tokenizers of Hugging Face checkpoints, with the same ids as in transformers; no id is added.

A folder has `tokenizer.json`, or older files from which `tokenizer_files` builds one. The tokenizers library parses the
files, and no code of a checkpoint is executed. As in transformers, text with the characters of a special token is
encoded as that token; a tokenizer that lmjax has trained never does this.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from lmjax.data.long_texts import Located
from lmjax.data.special_tokens import (
    chat_template,
    parse_object,
    read_bounded,
    read_template,
    settings_of,
    special_names,
)
from lmjax.data.tokenizer import Tokenizer
from lmjax.data.tokenizer_files import MODEL_FILES, build
from lmjax.data.vocabulary import ROLES, TEMPLATE, Template, Vocabulary, write_whole
from lmjax.errors import FlagError
from lmjax.paths import expanded

TOKENIZER, SPECIAL = "tokenizer.json", "special_tokens.json"
# Files next to the tokenizer that are saved with it, unchanged.
CONFIG = "tokenizer_config.json"
SIDE_FILES = (CONFIG, "special_tokens_map.json", "added_tokens.json", TEMPLATE)

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_SENTINEL = re.compile(r"<extra_id_(\d{1,6})>")


def _begin(ids: Sequence[int], part: Sequence[int], start: int) -> int | None:
    """Returns where `part` first begins in `ids`, from `start` on; None: nowhere."""
    return next((i for i in range(start, len(ids) + 1) if list(ids[i : i + len(part)]) == list(part)), None)


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """Raises FlagError where the library fails on a text, such as at a regular expression that takes too many steps.

    It raises Exception itself, or pyo3's PanicException, which is no Exception and cannot be imported.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise FlagError(
            f"tokenizer.path: the tokenizer cannot encode or decode a text ({str(error)[:200]}); choose another"
        ) from error


class FastTokenizer(Vocabulary):
    """The tokenizer of a `tokenizer.json`; `Vocabulary` documents its attributes.

    Picklable: only `files` and `names` are pickled.

    The bytes that a token represents depend on the kind of tokenizer. A byte-level token represents its bytes, a token
    with U+2581 its text with spaces instead, and a byte token one byte. WordPiece drops white space, so its byte counts
    are estimates: a token that begins with a letter or a digit represents its characters and one space before them, any
    other token (punctuation, an ideograph, or a token that begins with "##") its characters alone.

    Attributes:
        files: name -> content; `tokenizer.json`, and the files of `SIDE_FILES` that were next to it.
        names: `bos_token` and so on -> the token; `extra_special_tokens` -> a list of tokens; `tokenizer_class`.
    """

    def __init__(self, files: Mapping[str, bytes], names: Mapping[str, Any]):
        self.files, self.names = dict(files), dict(names)
        content = json.loads(files[TOKENIZER])
        self._fast = fast = tokenizers.Tokenizer.from_str(files[TOKENIZER].decode())
        fast.no_padding()
        fast.no_truncation()
        vocab = fast.get_vocab(with_added_tokens=True)
        named = {role: names[f"{role}_token"] for role in ROLES if names.get(f"{role}_token") in vocab}
        extra = [token for token in names["extra_special_tokens"] if token in vocab]
        # As in transformers, all named special tokens are matched in text. They are all in the vocabulary, so no id is
        # added. Those of the file keep its settings, for example that a mask includes the space before it.
        found = {token["content"] for token in content.get("added_tokens") or ()}
        fast.add_special_tokens(sorted({*named.values(), *extra} - found))
        roles = {role: vocab[token] for role, token in named.items()}
        added = {token["id"]: token["special"] for token in content.get("added_tokens") or ()}
        special = {i for i, is_special in added.items() if is_special} | {vocab[token] for token in extra}
        special |= set(roles.values())
        numbers = {int(m[1]): i for token, i in vocab.items() if (m := _SENTINEL.fullmatch(token))}
        sentinels = [numbers[n] for n in range(len(numbers)) if n in numbers]
        special |= set(sentinels)
        pieces = [b""] * (1 + max(vocab.values()))
        stands_for = _meaning(content)
        self._spells = stands_for is _byte_level
        self._byte_pairs = content["model"].get("type") == "BPE"
        for token, i in vocab.items():
            pieces[i] = token.encode() if i in added else stands_for(token)
        special |= set(range(len(pieces))) - set(vocab.values())
        prefix = content["model"].get("continuing_subword_prefix") or ""
        continues = [i for token, i in vocab.items() if prefix and i not in special and token.startswith(prefix)]
        super().__init__(pieces, special, roles, sentinels, continues)
        self.special_texts = {token: i for token, i in vocab.items() if i in self.special_ids}
        self.chat_template = chat_template(self.files.get(TEMPLATE), self.files.get(CONFIG))
        digest = hashlib.blake2b(files[TOKENIZER], digest_size=16)
        digest.update(json.dumps(self.names, sort_keys=True).encode())
        self.fingerprint = digest.hexdigest()

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token by its text; None if there is no such token."""
        return self._fast.token_to_id(token)

    @_clear_errors()
    def template(self) -> Template:
        """Returns the ids that the tokenizer adds to a text, or to a pair of texts, if called with special tokens."""
        plain, whole = (self._fast.encode("a", add_special_tokens=asked).ids for asked in (False, True))
        size, start = len(plain), _begin(whole, plain, 0)
        if start is None:
            raise FlagError("tokenizer.path: the tokenizer's post_processor changes the ids of a text; choose another")
        before, after = tuple(whole[:start]), tuple(whole[start + size :])
        pair = self._fast.encode("a", "a", add_special_tokens=True)
        second = _begin(pair.ids, plain, start + size)
        if second is None or pair.ids[: start + size] != whole[: start + size]:
            # It has no form for pairs; each text of one is then ended like a single text.
            return Template(before, after, after)
        return Template(before, tuple(pair.ids[start + size : second]), after, pair.type_ids[second])

    @_clear_errors()
    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns, for each token of a text, its int32 id and the int64 characters at which it begins and ends."""
        encoding = self._fast.encode(text, add_special_tokens=False)
        bounds = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        return np.array(encoding.ids, np.int32), bounds[:, 0], bounds[:, 1]

    def with_template(self, template: str) -> "FastTokenizer":
        """Returns the same tokenizer with another chat template."""
        if template == self.chat_template:
            return self
        return FastTokenizer({**self.files, TEMPLATE: template.encode()}, self.names)

    def with_special(self, roles: Sequence[str]) -> "FastTokenizer":
        """Returns the tokenizer with the special tokens of these roles; those that it lacks get the next ids."""
        new = {f"{role}_token": f"[{role.upper()}]" for role in roles if role not in self.role_ids}
        if not new:
            return self
        whole = tokenizers.Tokenizer.from_str(self.files[TOKENIZER].decode())
        whole.add_special_tokens(list(new.values()))
        return FastTokenizer({**self.files, TOKENIZER: whole.to_str().encode()}, {**self.names, **new})

    def save_in(self, folder: pathlib.Path) -> None:
        """Writes `tokenizer.json`, the files that were next to it and `special_tokens.json` into `folder`."""
        for name in (n for n in self.files if n != TOKENIZER):
            write_whole(folder / name, self.files[name])
        write_whole(folder / SPECIAL, json.dumps(self.names, indent=1).encode())
        # This file is written last: if it exists, all others do.
        write_whole(folder / TOKENIZER, self.files[TOKENIZER])

    @_clear_errors()
    def _encode(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Returns the token ids of each text; with more than one thread, the library chooses the number of threads."""
        if threads == 1:
            return [self._fast.encode(text, add_special_tokens=False).ids for text in texts]
        return [e.ids for e in self._fast.encode_batch_fast(list(texts), add_special_tokens=False)]

    @_clear_errors()
    def _locate(self, texts: Sequence[str], threads: int, parts: bool) -> list[Located]:
        if self._spells and not parts:
            # Without offsets the library needs two thirds of the time.
            encoded = zip(texts, self._encode(texts, threads), strict=True)
            return [self._spelled(text, ids) or self._locate([text], 1, parts=True)[0] for text, ids in encoded]
        if threads == 1:
            return [_located(self._fast.encode(text, add_special_tokens=False)) for text in texts]
        return [_located(encoding) for encoding in self._fast.encode_batch(list(texts), add_special_tokens=False)]

    @_clear_errors()
    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids, without special tokens; the tokenizer's decoder decides the white space."""
        return self._fast.decode([i for i in map(int, ids) if i not in self.special_ids], skip_special_tokens=False)

    def __reduce__(self):
        return FastTokenizer, (self.files, self.names)


def load_tokenizer(path: str) -> Tokenizer | FastTokenizer:
    """Returns the tokenizer of a `.model`, of a `tokenizer.json`, or of a folder of a checkpoint or a run.

    The special tokens that a `.model` lacks are added after its own ids, for training a new model. None are added to
    the tokenizer of a checkpoint, because its model has no embeddings for them.

    Raises:
        FlagError: a file is missing, damaged or of an unknown kind.
    """
    place = expanded(path)
    if place.is_dir():
        return _load_folder(place)
    if place.suffix != ".json":
        return Tokenizer.load(path)
    return _load_json(place, beside=place.name == TOKENIZER)


def _load_folder(folder: pathlib.Path) -> Tokenizer | FastTokenizer:
    if (folder / TOKENIZER).exists():
        return _load_json(folder / TOKENIZER, beside=True)
    settings = settings_of(folder)
    model = next((folder / name for name in MODEL_FILES if (folder / name).exists()), None)
    if model and not settings:
        there = (folder / TEMPLATE).exists()
        return Tokenizer.load(str(model)).with_template(read_template(folder / TEMPLATE) if there else "")
    return _checked(folder, build(folder, model, settings), settings)


def _load_json(path: pathlib.Path, *, beside: bool) -> FastTokenizer:
    """Returns the tokenizer of a `tokenizer.json`; with `beside`, the other files in its folder are read too."""
    content = read_bounded(path)
    saved = path.with_name(SPECIAL)
    if beside and saved.exists():
        # This is the workdir of a run, in which config.json is not that of a checkpoint.
        names = _saved_names(saved)
        return _checked(path, content, {}, names)
    settings = settings_of(path.parent) if beside else {}
    return _checked(path, content, settings)


def _saved_names(path: pathlib.Path) -> dict[str, Any]:
    names = parse_object(path, read_bounded(path))
    extra = names.get("extra_special_tokens")
    single = [v for k, v in names.items() if k != "extra_special_tokens"]
    if not isinstance(extra, list) or not all(isinstance(text, str) for text in [*extra, *single]):
        raise FlagError(f"tokenizer.path: {str(path)!r} does not name special tokens; copy it from the workdir again")
    return names


def _checked(
    path: pathlib.Path, content: bytes, settings: Mapping[str, Any], names: Mapping[str, Any] | None = None
) -> FastTokenizer:
    """Returns the tokenizer of the content of a `tokenizer.json`, after loading it in another process.

    The other process protects this one, because a damaged file can crash the library.

    Raises:
        FlagError: it is not a complete tokenizer, or the library gives a token another id than the file.
    """
    data = parse_object(path, content)
    try:
        # With -P, Python does not import modules with these names from the current folder.
        subprocess.run(
            [sys.executable, "-P", "-c", _TRIAL], input=content, check=True, capture_output=True, timeout=120
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
        raise FlagError(
            f"tokenizer.path: {str(path)!r} is not a tokenizer.json that the tokenizers library can read"
            f"{f' ({said[-1][:200]})' if said else ''}; copy or save it again"
        ) from error
    pieces = data["model"]["vocab"]
    vocab = dict(pieces) if isinstance(pieces, dict) else {piece: i for i, (piece, _) in enumerate(pieces)}
    added = {token["content"]: token["id"] for token in data.get("added_tokens") or ()}
    vocab |= added
    token_of = {i: token for token, i in vocab.items()}
    if shared := next((token for token, i in vocab.items() if token_of[i] != token), None):
        raise FlagError(
            f"tokenizer.path: {str(path)!r} gives {shared!r} and {token_of[vocab[shared]]!r} one id, {vocab[shared]}; "
            "save it again"
        )
    largest = max(vocab.values(), default=-1)
    if not 0 <= largest < 2 * len(vocab) + _HOLES:
        raise FlagError(f"tokenizer.path: {str(path)!r} has {len(vocab)} tokens but ids up to {largest}; save it again")
    folder = path if path.is_dir() else path.parent
    beside = [name for name in SIDE_FILES if (settings or names) and (folder / name).exists()]
    kept = {name: read_bounded(folder / name) for name in beside}
    for name in (n for n in kept if n.endswith(".json")):
        parse_object(folder / name, kept[name])
    tokenizer = FastTokenizer({TOKENIZER: content, **kept}, names or special_names(data, settings, vocab))
    moved = next((token for token, i in added.items() if tokenizer.token_id(token) != i), None)
    if moved is not None:
        raise FlagError(
            f"tokenizer.path: {str(path)!r} gives {moved!r} the id {added[moved]}, which is not the next free one; "
            "save it again"
        )
    return tokenizer


def _located(encoding: tokenizers.Encoding) -> Located:
    """Returns the tokens of a text in an encoding of the library."""
    ids = np.array(encoding.ids, np.int32)
    words = np.array(encoding.word_ids, np.int64)
    starts = np.fromiter((start for start, _ in encoding.offsets), np.int64, count=len(ids))
    return Located(ids, np.maximum.accumulate(starts), np.diff(words, prepend=-1) != 0)


_HOLES = 1000
_TRIAL = (
    "import sys, tokenizers; t = tokenizers.Tokenizer.from_str(sys.stdin.buffer.read().decode()); t.no_padding(); "
    "t.no_truncation(); t.decode(t.encode('a b\\u00e9').ids); t.decode(list(t.get_vocab().values()))"
)


def _meaning(content: Mapping[str, Any]) -> Any:
    """Returns the function that maps a token, except added ones, to the bytes that it represents."""
    model = content["model"]
    if '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("decoder")]):
        return _byte_level
    prefix = model.get("continuing_subword_prefix")
    if prefix:
        return functools.partial(_word_piece, prefix=prefix)
    return functools.partial(_spaced, byte_fallback=bool(model.get("byte_fallback")))


def _byte_level(token: str) -> bytes:
    byte_of = _alphabet()
    return token.translate(byte_of).encode("latin-1") if byte_of.keys() >= set(map(ord, token)) else token.encode()


@functools.cache
def _alphabet() -> dict[int, int]:
    """Returns character code -> byte for the characters of byte-level tokens (Radford et al. 2019, section 2.2).

    A byte that is a visible character of Latin-1 represents itself; the others have the characters from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: b for b in visible} | {0x100 + n: b for n, b in enumerate(hidden)}


def _word_piece(token: str, prefix: str) -> bytes:
    if token.startswith(prefix):
        return token.removeprefix(prefix).encode()
    ideograph = "\u3040" <= token[:1] <= "\u9fff" or token[:1] >= "\U00020000"
    return (" " * (token[:1].isalnum() and not ideograph) + token).encode()


def _spaced(token: str, byte_fallback: bool) -> bytes:
    byte = _BYTE_PIECE.fullmatch(token) if byte_fallback else None
    return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
