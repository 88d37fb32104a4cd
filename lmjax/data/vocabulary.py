"""The base class of tokenizers: which ids are special, which are text, and the bytes that each id represents."""

import functools
import pathlib
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.data import long_texts
from lmjax.data.long_texts import Joints, Located
from lmjax.errors import FlagError

# The name of each special token in messages, and an example of it.
ROLES = {
    "pad": "padding ([PAD])",
    "unk": "unknown ([UNK])",
    "bos": "begin-of-text (<s>)",
    "eos": "end-of-text (</s>)",
    "cls": "classifier ([CLS])",
    "sep": "separator ([SEP])",
    "mask": "mask ([MASK])",
}


# The file of a chat template, in the folder of its tokenizer.
TEMPLATE = "chat_template.jinja"


def _role(role: str) -> property:
    return property(lambda self: self._id(role), doc=f"Returns the id of the {ROLES[role]} token.")


class Template(NamedTuple):
    """The ids that a tokenizer adds to a text, or to a pair of texts, if called with special tokens.

    Attributes:
        before: ids before the first text.
        between: ids between the texts of a pair.
        after: ids after the last text.
        second_type: type id of the second text of a pair, and of what follows it; the type before it is 0.
    """

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    second_type: int = 0


class Vocabulary:
    """The ids of a tokenizer; the base class of `Tokenizer` and `FastTokenizer`.

    If a tokenizer lacks a special token, reading its id raises FlagError, except for padding. `pad_id` is then the id
    of the end of a text, or of the unknown token, or 0. Any id is possible, because segment ids mark padding, and token
    ids are never used for that.

    Attributes:
        vocab_size: number of ids, including ids without a token.
        pad_id, unk_id, bos_id, eos_id, cls_id, sep_id, mask_id: ids of the special tokens.
        role_ids: role -> id of the special tokens that the tokenizer has.
        sentinel_ids: int32 `[sentinels]`, ids of `<extra_id_0>`, `<extra_id_1>` ...; FlagError if there are none.
        sentinels: frozenset of the same ids, empty if there are none.
        special_ids: frozenset of all ids that are not text.
        is_text: bool `[vocab_size]`, whether the token is text.
        text_ids: int32 `[text tokens]`, the ids of all tokens that are text.
        pieces: the bytes that each token represents; empty for special tokens.
        token_bytes: int32 `[vocab_size]`, number of UTF-8 bytes that the token represents: 0 for a special token, 1 for
            a byte token.
        word_start: bool `[vocab_size]`, whether the token begins a word (or is white space, punctuation or special).
            For whole-word masking, a word is such a token and the tokens after it up to the next one.
        fingerprint: hex digest of everything that determines the ids.
        chat_template: the template of conversations that is saved with the tokenizer; empty: it has none.
        special_texts: text -> id of the special tokens that have one.
    """

    fingerprint: str
    chat_template: str = ""
    special_texts: dict[str, int]
    _byte_pairs = False  # whether the ids are those of byte-pair encoding
    pad_id, unk_id, bos_id, eos_id, cls_id, sep_id, mask_id = map(_role, ROLES)

    def template(self) -> Template | None:
        """Returns the ids that the tokenizer itself adds to texts; None: it adds none, and objectives decide."""
        return None

    def __init__(
        self,
        pieces: Sequence[bytes],
        special: Collection[int],
        roles: Mapping[str, int],
        sentinels: Sequence[int],
        continues: Collection[int] = (),
    ):
        """Sets all attributes except the fingerprint.

        Args:
            pieces: the bytes that each id represents; those of special ids are ignored.
            special: the ids that are not text.
            roles: ids of the special tokens that the tokenizer has, by their role in `ROLES`.
            sentinels: ids of `<extra_id_0>`, `<extra_id_1>` ...
            continues: ids of text tokens that continue a word, whatever their bytes.
        """
        self.vocab_size = len(pieces)
        self.special_ids = frozenset(special)
        self.sentinels = frozenset(sentinels)
        self.role_ids = dict(roles)
        self._sentinel_ids = np.array(sentinels, np.int32)
        self.pieces = pieces = [b"" if i in self.special_ids else piece for i, piece in enumerate(pieces)]
        self.is_text = np.array([i not in self.special_ids for i in range(len(pieces))], np.bool_)
        self.text_ids = np.flatnonzero(self.is_text).astype(np.int32)
        self.token_bytes = np.array([len(piece) for piece in pieces], np.int32)
        self.word_start = np.array([starts_word(piece) for piece in pieces], np.bool_)
        self.word_start[list(continues)] = False

    def _id(self, role: str) -> int:
        if role in self.role_ids:
            return self.role_ids[role]
        if role == "pad":
            return next((self.role_ids[r] for r in ("eos", "unk") if r in self.role_ids), 0)
        raise FlagError(
            f"tokenizer.path: this tokenizer has no {ROLES[role]} token, and the objective or the model needs one; "
            f"choose a tokenizer that has it, or an objective that does without, or add it: "
            f"--config.tokenizer.added={role}"
        )

    @property
    def sentinel_ids(self) -> np.ndarray:
        """Returns the ids of the sentinels, int32 `[sentinels]`; raises FlagError if there are none."""
        if not self.sentinels:
            raise FlagError(
                "tokenizer.path: this tokenizer has no sentinels (<extra_id_0> and on), and the objective needs them; "
                "choose a tokenizer that has them, or an objective that does without"
            )
        return self._sentinel_ids

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text`, without special tokens around it."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Returns the token ids of each text, of any length, computed by `threads` threads."""
        encoded = iter(self._encode([text for text in texts if not _is_long(text)], threads))
        return [self._located(text, threads).ids.tolist() if _is_long(text) else next(encoded) for text in texts]

    def locate_batch(self, texts: Sequence[str], threads: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns, for each text, int32 token ids and the int64 index of the character at which each token begins."""
        located = iter(self._locate([text for text in texts if not _is_long(text)], threads, parts=False))
        found = (self._located(text, threads) if _is_long(text) else next(located) for text in texts)
        return [(tokens.ids, tokens.starts) for tokens in found]

    def _located(self, text: str, threads: int) -> Located:
        """Returns the tokens of a text that is too long to be encoded at once."""
        return long_texts.encode_long(text, functools.partial(self._locate, threads=threads, parts=True), self._joints)

    @functools.cached_property
    def _joints(self) -> Joints:
        return Joints(self.pieces, self._byte_pairs)

    def _encode(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Returns the token ids of each text, encoded at once."""
        raise NotImplementedError

    def _locate(self, texts: Sequence[str], threads: int, parts: bool) -> list[Located]:
        """Returns the tokens of each text, encoded at once.

        Args:
            texts: the texts.
            threads: number of threads.
            parts: whether `Located.parts` is needed; otherwise it may be all False.
        """
        raise NotImplementedError

    def _spelled(self, text: str, ids: Sequence[int]) -> Located | None:
        """Returns the tokens of a text, located by counting their bytes; None if these bytes are not the text's."""
        content = text.encode()
        if b"".join([self.pieces[i] for i in ids]) != content:
            return None
        ids = np.array(ids, np.int32)
        sizes = self.token_bytes[ids].astype(np.int64)
        starts = np.cumsum(sizes) - sizes
        if len(content) != len(text):
            starts = (np.cumsum((np.frombuffer(content, np.uint8) & 0xC0) != 0x80) - 1)[starts]
        return Located(ids, starts, np.zeros(len(ids), np.bool_))

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids, without special tokens."""
        raise NotImplementedError

    @property
    def special_names(self) -> dict[str, str]:
        """Returns role -> text of the special tokens that the tokenizer has."""
        text_of = {i: text for text, i in self.special_texts.items()}
        return {role: text_of[i] for role, i in self.role_ids.items() if i in text_of}

    def with_template(self, template: str) -> "Vocabulary":
        """Returns the same tokenizer with another chat template."""
        raise NotImplementedError

    def with_special(self, roles: Sequence[str]) -> "Vocabulary":
        """Returns the tokenizer with the special tokens of these roles; those that it lacks get the next ids."""
        raise NotImplementedError

    def save_in(self, folder: pathlib.Path) -> None:
        """Writes into `folder` the files from which `load_tokenizer` loads the same tokenizer."""
        raise NotImplementedError


def _is_long(text: str) -> bool:
    return len(text) > long_texts.WINDOW


def starts_word(piece: bytes) -> bool:
    """Returns whether a token with these bytes begins a word.

    A word is a sequence of letters, digits and underscores with the white space before it. Each other character begins
    a new word, and so does each ideograph, as in BERT's basic tokenizer (Devlin et al. 2018, arXiv:1810.04805, A.1).
    For a single byte, the characters that it can begin decide.
    """
    if not piece:
        return True
    first = piece.decode(errors="ignore")[:1]
    if not first:
        return piece[0] >= 0xE0  # begins a character of three or four bytes: ideographs, symbols, emoji
    return not (first.isalnum() or first == "_") or "\u3040" <= first <= "\u9fff" or first >= "\U00020000"


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that an interrupted write leaves no partial file."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
