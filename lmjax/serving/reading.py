"""A prompt that is being read, in passes of few widths, and with what a kept prompt has of it already."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from lmjax.inference.generate import decode
from lmjax.inference.generate.requests import SMALLEST, Request, columns
from lmjax.model.cache import Cache
from lmjax.serving.prefixes import Prefix
from lmjax.serving.slots import resized

if TYPE_CHECKING:
    from lmjax.serving.rows import Rows


class Reading:
    """A prompt that is being read.

    Attributes:
        request: the prompt.
        adapter: the number of its adapter.
        known: tokens at its beginning that a kept prompt has already.
        logits: after what was read.
        cache: of what was read.
    """

    def __init__(self, rows: Rows, request: Request, adapter: int, limit: int):
        """Takes a prompt.

        Args:
            rows: the batch.
            request: the prompt.
            adapter: the number of its adapter.
            limit: the most tokens of its text.
        """
        self.request, self.adapter, self.known = request, adapter, 0
        self.logits = self.cache = None
        self._rows, prompt = rows, request.prompt
        prefix, length = rows.prefixes.find(prompt, adapter) if rows.keeps_prefixes else (None, 0)
        if prefix is not None:
            first, rest = int(prefix.slots[length - 1]) + 1, rows.pieces(request, length)
            width = self._columns(rest)
            # The padding before the rest takes slots too.
            if first + width + limit <= rows.capacity:
                self.known, self._left, self._size = length, rest, rows.capacity
                self.cache = resized(rewound(prefix.cache, np.int32(first)), rows.loaded.model, self._size)
                self._slots = np.append(prefix.slots[:length], first + width - np.arange(len(prompt) - length, 0, -1))
                return
        self._left = rows.pieces(request)
        width = self._columns(self._left)
        self._slots = np.arange(width - len(prompt), width)
        self._size = rows.capacity if rows.reads_whole else rows.slots.fitting(width + 1)

    @property
    def done(self) -> bool:
        """Returns whether the whole prompt has been read."""
        return not self._left

    @property
    def filled(self) -> int:
        """Returns the slots that the prompt takes, with the padding before it."""
        return int(self._slots[-1]) + 1

    def step(self) -> None:
        """Reads the next piece; after the last one, the prompt is kept."""
        rows, piece = self._rows, self._left.pop(0)
        params, model = rows.params(np.array([self.adapter], np.int32)), rows.loaded.model
        if self.cache is None:
            capacity = rows.capacity if rows.reads_whole else self._columns([piece])
            self.logits, cache = decode.prefill(params, piece, model=model, capacity=capacity, kind=rows.config.cache)
            self.cache = resized(cache, model, self._size)
        else:
            self.logits, self.cache = decode.extend(params, piece, self.cache, model=model)
        if self.done and rows.keeps_prefixes:
            rows.prefixes.keep(Prefix(self.request.prompt, self.adapter, self._slots, self.cache))

    def _columns(self, pieces: list[dict[str, np.ndarray]]) -> int:
        tokens = f"{self._rows.loaded.config.family.predicts}tokens"
        return sum(piece[tokens].shape[1] for piece in pieces)


def widths(chunk: int) -> list[int]:
    """Returns the columns that a pass may have, ascending: quarters of `chunk`, which is the most."""
    step = max(SMALLEST, chunk // 4)
    return [*range(step, chunk, step), chunk]


def narrow_pieces(prompt: Sequence[int], known: int, chunk: int, pad: int) -> list[dict[str, np.ndarray]]:
    """Returns the fields of the passes that read a prompt of a decoder after its first `known` tokens.

    The first pass is as narrow as `widths` allows, and all others are whole chunks, so that less padding is read than
    by `writing.pieces`, whose programs are for many prompts at once.
    """
    later = (len(prompt) - known - 1) // chunk * chunk
    first = next(width for width in widths(chunk) if width >= len(prompt) - known - later)
    fields = columns([prompt[known:]], first + later, pad)
    fields["positions"] = fields["positions"] + known * fields["segment_ids"]
    borders = [0, *range(first, first + later + 1, chunk)]
    return [{name: x[:, start:end] for name, x in fields.items()} for start, end in itertools.pairwise(borders)]


@jax.jit
def rewound(cache: Cache, filled: jax.Array) -> Cache:
    """Returns a copy of a cache, of which only the first slots are filled."""
    return cache.rewind(filled)
