"""Turns the pieces of documents that share a row into its arrays: tokens, positions, segment ids.

A piece is a contiguous part of a document (`lmjax.data.packing`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lmjax.data.packing import Plan
from lmjax.data.store import Store
from lmjax.objectives.base import Features
from lmjax.objectives.prompts import PromptFormat


def pad(values: np.ndarray, length: int, fill: int = 0, dtype: type = np.int32) -> np.ndarray:
    """Returns `[length]`: `values`, padded at the end with `fill`."""
    out = np.full(length, fill, dtype)
    out[: len(values)] = values
    return out


def segments(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[tokens]` positions, from 0 in each piece, and segment ids, from 1, of concatenated pieces."""
    if not lengths:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    ids = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)
    return positions, ids


def side(pieces: list[np.ndarray], length: int, pad_id: int, prefix: str = "") -> Features:
    """Returns `{prefix}tokens`, `{prefix}positions` and `{prefix}segment_ids`, each int32 `[length]`.

    Padding has segment id 0, which no piece has, so no token of a piece attends to it.
    """
    positions, ids = segments([len(p) for p in pieces])
    return {
        f"{prefix}tokens": pad(np.concatenate(pieces), length, pad_id),
        f"{prefix}positions": pad(positions, length),
        f"{prefix}segment_ids": pad(ids, length),
    }


def fitted(first: np.ndarray, second: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns two texts of at most `room` tokens together; the longer one loses its end first.

    Devlin et al. 2019, arXiv:1810.04805, in the code of its authors.
    """
    room = max(0, room)
    halves = (room - room // 2, room // 2)
    return first[: max(room - len(second), halves[0])], second[: max(room - len(first), halves[1])]


def joined(
    form: PromptFormat, texts: Sequence[np.ndarray], *, end_id: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of one or two texts with those around them, at most `length`, and the type of each, int32.

    Of two texts that do not fit, the longer one loses its end first. Without any id there is `end_id`, so that the
    model reads something.

    Args:
        form: the ids before, between and after the texts.
        texts: the ids of one or two texts; a second one without ids counts as absent.
        end_id: the id between two texts if the form has none for that.
        length: most tokens.
    """
    between = (form.after or (end_id,)) if form.between is None else form.between
    first, *rest = texts
    second = rest[0] if rest else first[:0]
    joint = list(between) if len(second) else []
    a, b = fitted(first, second, length - len(form.before) - len(joint) - len(form.after))
    begin, end = [*form.before, *a, *joint], [*b, *form.after]
    types = [0] * len(begin) + [form.second_type if len(second) else 0] * len(end)
    return np.array([*begin, *end] or [end_id], np.int32)[:length], np.array(types or [0], np.int32)[:length]


def text_row(form: PromptFormat, texts: Sequence[np.ndarray], *, end_id: int, length: int, pad_id: int) -> Features:
    """Returns `tokens`, `positions`, `segment_ids` and `type_ids`, int32 `[length]`, of a row of one or two texts.

    Args:
        form: as for `joined`.
        texts: likewise.
        end_id: likewise.
        length: tokens in the row.
        pad_id: padding.
    """
    tokens, types = joined(form, texts, end_id=end_id, length=length)
    return side([tokens], length, pad_id) | {"type_ids": pad(types, length)}


def rooms(sizes: Sequence[int], room: int) -> list[int]:
    """Returns how many of the tokens of each text are kept, `room` in all; the longest texts lose their ends first."""
    kept = [0] * len(sizes)
    for left, i in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        # What a short text leaves is shared by the longer ones.
        kept[i] = min(sizes[i], max(0, room) // (len(sizes) - left))
        room -= kept[i]
    return kept


def separate_texts(form: PromptFormat, texts: Sequence[np.ndarray], *, length: int, pad_id: int) -> Features:
    """Returns `side` of texts that share a row, each a segment, and `text_ids`, int32 `[texts]`, their segment ids.

    Texts that do not fit lose their ends, the longest ones first.

    Args:
        form: the ids before and after each text.
        texts: their ids.
        length: tokens in the row.
        pad_id: padding, and the only id of a text without any, so that every text has a segment.
    """
    around = len(form.before) + len(form.after)
    kept = rooms([len(text) for text in texts], length - around * len(texts))
    pieces = [form.around(text[:size]) or [pad_id] for text, size in zip(texts, kept, strict=True)]
    ids = np.arange(1, len(texts) + 1, dtype=np.int32)
    return side([np.array(piece, np.int32) for piece in pieces], length, pad_id) | {"text_ids": ids}


def source_target(
    pairs: list[tuple[np.ndarray, np.ndarray]],
    *,
    paired: bool,
    length: int,
    target_length: int,
    pad_id: int,
    bos_id: int,
) -> Features:
    """Returns the features of (source, target) pairs packed into one row; only target tokens have weight 1.

    An encoder-decoder reads the sources in its encoder and predicts the targets in its decoder, whose first input is
    the padding id, as in T5. A decoder reads BOS, source and target in one row and predicts the target.

    Args:
        pairs: token ids of each source and target, including EOS.
        paired: whether the model is an encoder-decoder, in which sources have their own row.
        length: tokens in the encoder's row, or in the row of a decoder-only model.
        target_length: tokens in the decoder's row of an encoder-decoder.
        pad_id: padding, and the first decoder input of an encoder-decoder.
        bos_id: the first input of a decoder-only model.
    """
    if paired:
        shifted = [np.concatenate([[pad_id], t[:-1]]) for _, t in pairs]
        targets = np.concatenate([t for _, t in pairs])
        return {
            **side([s for s, _ in pairs], length, pad_id, "encoder_"),
            **side(shifted, target_length, pad_id, "decoder_"),
            "targets": pad(targets, target_length, pad_id),
            "weights": pad(np.ones(len(targets)), target_length, dtype=np.float32),
        }
    whole = [np.concatenate([[bos_id], s, t]) for s, t in pairs]
    weights = [np.concatenate([np.zeros(len(s)), np.ones(len(t))]) for s, t in pairs]
    return {
        **side([w[:-1] for w in whole], length, pad_id),
        "targets": pad(np.concatenate([w[1:] for w in whole]), length, pad_id),
        "weights": pad(np.concatenate(weights), length, dtype=np.float32),
    }


@dataclasses.dataclass(frozen=True)
class PackedPieces:
    """Gives the pieces of documents of each row, by the number of the row.

    Attributes:
        store: the documents.
        plan: the pieces of each row.
    """

    store: Store
    plan: Plan

    def __len__(self) -> int:
        return len(self.plan)

    def bounds(self, index: int) -> list[tuple[int, int, int]]:
        """Returns (document, start, length) of each piece in row `index`."""
        return list(zip(*(a.tolist() for a in self.plan.row(index)), strict=True))

    def documents(self, index: int) -> Sequence[int]:
        """Returns the document of each piece in row `index`."""
        return self.plan.row(index)[0].tolist()

    def tokens(self, index: int) -> list[np.ndarray]:
        """Returns the token ids of each piece in row `index`."""
        return [self.store.tokens(d, s, n) for d, s, n in self.bounds(index)]
