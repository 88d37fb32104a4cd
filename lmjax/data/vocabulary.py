"""What every tokenizer knows of its ids: which are special, which are text, and what each of them stands for."""

import functools
import pathlib
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from lmjax.data import long_texts
from lmjax.data.long_texts import Joints, Located
from lmjax.errors import FlagError

# What each special symbol is called, and an example of it.
ROLES = {
    "pad": "padding ([PAD])",
    "unk": "unknown ([UNK])",
    "bos": "begin-of-text (<s>)",
    "eos": "end-of-text (</s>)",
    "cls": "classifier ([CLS])",
    "sep": "separator ([SEP])",
    "mask": "mask ([MASK])",
}


def _role(role: str) -> property:
    return property(lambda self: self._id(role), doc=f"Returns the id of the {ROLES[role]} token.")


class Vocabulary:
    """The ids of a tokenizer; the base class of `Tokenizer` and `FastTokenizer`.

    A special symbol that a tokenizer lacks is an error when it is asked for, not before. Padding alone always has an
    id: that of the end of a text, of the unknown token, or 0, whichever exists. Any id would do, because segment ids
    say what is padding and token ids never do.

    Attributes:
      vocab_size: number of ids, those without a token among them.
      pad_id, unk_id, bos_id, eos_id, cls_id, sep_id, mask_id: ids of the special symbols.
      role_ids: role -> id of those special symbols that the tokenizer has.
      sentinel_ids: int32, of `<extra_id_0>` and on, in this order; an error where there are none.
      sentinels: frozenset of the same, empty where there are none.
      special_ids: frozenset of every id that is not text.
      is_text: `[vocab_size]` bool, whether the token stands for text.
      text_ids: int32, the ids of all tokens that do.
      pieces: the bytes that each token stands for, as `token_bytes` counts them.
      token_bytes: `[vocab_size]` int32, UTF-8 bytes that the token stands for: 0 for a special one, 1 for a byte piece.
      word_start: `[vocab_size]` bool, whether the token begins a word (or is white space, punctuation or special): a
        word is such a token and those after it up to the next, for whole-word masking.
      fingerprint: hex digest of all that decides the ids.
    """

    fingerprint: str
    _byte_pairs = False  # whether the ids are those of byte-pair encoding
    pad_id, unk_id, bos_id, eos_id, cls_id, sep_id, mask_id = map(_role, ROLES)

    def __init__(
        self,
        pieces: Sequence[bytes],
        special: Collection[int],
        roles: Mapping[str, int],
        sentinels: Sequence[int],
        continues: Collection[int] = (),
    ):
        """Fills in every attribute but the fingerprint.

        Args:
          pieces: what each id stands for; special ones are taken as empty.
          special: the ids that are not text.
          roles: ids of those of `ROLES` that the tokenizer has.
          sentinels: ids of `<extra_id_0>` and on.
          continues: ids of text that are known to go on with a word, whatever they stand for.
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
            "choose a tokenizer that has it, or an objective that does without"
        )

    @property
    def sentinel_ids(self) -> np.ndarray:
        """Returns the ids of the sentinels, int32."""
        if not self.sentinels:
            raise FlagError(
                "tokenizer.path: this tokenizer has no sentinels (<extra_id_0> and on), and the objective needs them; "
                "choose a tokenizer that has them, or an objective that does without"
            )
        return self._sentinel_ids

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`; none are put around it."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """The token ids of each text, of any length, computed by `threads` threads."""
        encoded = iter(self._encode([text for text in texts if not _is_long(text)], threads))
        return [self._located(text, threads).ids.tolist() if _is_long(text) else next(encoded) for text in texts]

    def locate_batch(self, texts: Sequence[str], threads: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
        """The token ids of each text, int32, and the character of the text at which each token begins, int64."""
        located = iter(self._locate([text for text in texts if not _is_long(text)], threads, parts=False))
        found = (self._located(text, threads) if _is_long(text) else next(located) for text in texts)
        return [(tokens.ids, tokens.starts) for tokens in found]

    def _located(self, text: str, threads: int) -> Located:
        """The tokens of a text that is too long to be encoded at once."""
        return long_texts.encode_long(text, functools.partial(self._locate, threads=threads, parts=True), self._joints)

    @functools.cached_property
    def _joints(self) -> Joints:
        return Joints(self.pieces, self._byte_pairs)

    def _encode(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """The token ids of each text, encoded at once."""
        raise NotImplementedError

    def _locate(self, texts: Sequence[str], threads: int, parts: bool) -> list[Located]:
        """The tokens of each text, encoded at once.

        Args:
          texts: any.
          threads: how many compute.
          parts: whether `Located.parts` is needed; else it may be all False.
        """
        raise NotImplementedError

    def _spelled(self, text: str, ids: Sequence[int]) -> Located | None:
        """The tokens of a text, with their places counted by their bytes; None if they do not spell the text."""
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
        """The text of token ids; special symbols leave nothing."""
        raise NotImplementedError

    def save_in(self, folder: pathlib.Path) -> None:
        """Writes into `folder` what `load_tokenizer` needs to give back the same tokenizer."""
        raise NotImplementedError


def _is_long(text: str) -> bool:
    return len(text) > long_texts.WINDOW


def starts_word(piece: bytes) -> bool:
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


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file; a killed write leaves no half of it there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
