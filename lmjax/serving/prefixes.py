"""Prompts that were read lately: a new prompt that begins like one of them reads only its rest.

So the next message of a conversation does not read those before it again. The kept caches are whole rows of the batch,
and their number is fixed, so that their memory is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmjax.model.cache import Cache

# A shorter common beginning saves no pass over the model.
_LEAST = 16


class Prefix(NamedTuple):
    """A prompt that was read.

    Attributes:
        prompt: its ids.
        adapter: the number of the adapter that read it.
        slots: int `[tokens]`, the slot of the cache that holds each token.
        cache: of one row.
    """

    prompt: tuple[int, ...]
    adapter: int
    slots: np.ndarray
    cache: Cache


class Prefixes:
    """The last prompts, at most so many as are given."""

    def __init__(self, most: int):
        self._most = most
        self._kept: list[Prefix] = []

    def find(self, prompt: Sequence[int], adapter: int) -> tuple[Prefix | None, int]:
        """Returns the kept prompt with the longest common beginning, and its length; None: none is long enough.

        The common beginning lacks the last token of `prompt` at least, after which the first logits are needed.
        """
        best, longest = None, _LEAST - 1
        for kept in self._kept:
            if kept.adapter != adapter:
                continue
            pairs = zip(kept.prompt, prompt[:-1], strict=False)
            shared = min(len(kept.prompt), len(prompt) - 1)
            length = next((i for i, (a, b) in enumerate(pairs) if a != b), shared)
            if length > longest:
                best, longest = kept, length
        if best is None:
            return None, 0
        self._kept = [*(kept for kept in self._kept if kept is not best), best]
        return best, longest

    def keep(self, prefix: Prefix) -> None:
        """Keeps a prompt in place of those that it begins with, or else of the one that was not used for longest."""
        if not self._most or len(prefix.prompt) < _LEAST:
            return

        def covered(kept: Prefix) -> bool:
            return kept.adapter == prefix.adapter and kept.prompt == prefix.prompt[: len(kept.prompt)]

        self._kept = [*(kept for kept in self._kept if not covered(kept)), prefix][-self._most :]

    def clear(self) -> None:
        """Forgets all of them."""
        self._kept = []
