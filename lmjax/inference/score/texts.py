"""From texts to the inputs and targets of forward passes, for each family: ids, prompt format, masks and windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field

from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel, check_arguments
from lmjax.inference.score.join import join
from lmjax.inference.score.masks import mask_sets
from lmjax.inference.score.rows import Piece, RowConfig
from lmjax.inference.texts import Text


class ScoreConfig(RowConfig):
    """Settings of scoring."""

    max_length: int | None = Field(None, ge=4, description="tokens that the model reads at once; None: its own length")
    truncate: bool = Field(False, description="cut off the beginning of a context that is too long; off: an error")
    stride: int | None = Field(
        None, ge=1, description="tokens that each window of a long text adds; None: as many as it has room for"
    )
    end: bool = Field(False, description="also predict the token that ends a text; not for encoders")
    # The standard error of an estimate falls with the square root of this number.
    draws: int = Field(
        64,
        ge=1,
        description="sets of masked tokens that estimate the bound on the likelihood of a text, or of a window of it, "
        "under a model that writes by unmasking",
    )
    within_word: bool = Field(
        False,
        description="an encoder's masked token hides the later tokens of its word too (Kauf and Ivanova 2023, "
        "arXiv:2305.10588, section 3)",
    )


class Item(NamedTuple):
    """A continuation to score, after a context that may be empty; each is a text, or ids."""

    context: Text
    continuation: Text


def as_items(pairs: Sequence[Sequence[Text]], names: Sequence[str]) -> list[Item]:
    """Returns contexts and continuations; raises FlagError for a value that is not a pair of texts.

    Args:
        pairs: each has a context and a continuation.
        names: the names of the pairs in error messages.
    """
    for pair, name in zip(pairs, names, strict=True):
        two = isinstance(pair, tuple | list) and len(pair) == 2
        if not two or not all(isinstance(text, Sequence | np.ndarray) for text in pair):
            raise FlagError(
                f"{name}: {str(pair)[:80]!r} is not a context and continuation; give two texts, or their ids"
            )
    return [Item(*pair) for pair in pairs]


class Encoded(NamedTuple):
    """The ids of an item without those of the prompt format, and whether its two texts were encoded separately.

    `apart` is only True where the model reads both as one text, but their joint encoding cannot be split.
    """

    context: list[int]
    continuation: list[int]
    apart: bool = False


@dataclasses.dataclass(frozen=True)
class Reader:
    """Turns texts into pieces, according to the model's family and prompt format.

    Attributes:
        loaded: the model.
        config: settings.
        limit: the most tokens that the model reads in one pass.
    """

    loaded: LoadedModel
    config: ScoreConfig
    limit: int

    @classmethod
    def of(cls, loaded: LoadedModel, config: ScoreConfig) -> Reader:
        """Returns the reader for a model; raises FlagError if it predicts no tokens or cannot follow the config."""
        check_arguments(loaded, config, ScoreConfig)
        loaded.check_vocabulary()
        model, family = loaded.config, loaded.config.family
        limit = config.max_length or model.max_length
        limited = any(model.scheme(decoder).limit(model) is not None for decoder in (False, True))
        if limit > model.max_length and limited:
            raise FlagError(
                f"--max_length={limit}: the model's rows have at most {model.max_length} tokens; give at most as many"
            )
        if config.end and not family.causal:
            raise FlagError("end=True: an encoder predicts no end of a text; leave it off")
        if config.within_word and family.causal:
            raise FlagError(
                f"within_word=True: only an encoder masks tokens, and this is a {family.label}; leave it off"
            )
        if config.within_word and loaded.unmasks:
            raise FlagError("within_word=True: this model is scored by masking random sets of tokens; leave it off")
        if config.draws != ScoreConfig().draws and not loaded.unmasks:
            raise FlagError(
                f"--draws={config.draws}: is for a model that was trained to write by unmasking; leave it out"
            )
        if family.paired and not loaded.prompts.start:
            raise FlagError("prompts.start: is empty, but the decoder of an encoder-decoder needs it; give one id")
        return cls(loaded, config, limit)

    @property
    def around(self) -> int:
        """Returns the number of ids that the prompt format adds to a text."""
        return len(self.loaded.prompts.around([]))

    @property
    def begun(self) -> list[int]:
        """Returns the ids that an encoder-decoder's decoder reads before a text."""
        return [*self.loaded.prompts.start, *self.loaded.prompts.forced]

    @property
    def apart(self) -> bool:
        """Returns whether the model reads context and continuation as two texts, so that no token spans both."""
        family = self.loaded.config.family
        return family.paired or (family.causal and bool(self.loaded.prompts.after))

    def encode(self, items: Sequence[Item], names: Sequence[str]) -> list[Encoded]:
        """Returns the ids of every context and continuation.

        Args:
            items: the contexts and continuations.
            names: the names of the items in error messages.
        """
        rows, tokenizer = self.loaded.config.vocab_size, self.loaded.tokenizer
        for item, name in zip(items, names, strict=True):
            if not len(item.continuation):
                raise FlagError(f"{name}: {item.continuation!r} has no tokens; give it some text")
            given = (x for text in item if not isinstance(text, str) for x in text)
            bad = next((x for x in given if not 0 <= x < rows), None)
            if bad is not None:
                raise FlagError(f"{name}: the id {bad} is not in the model's vocabulary of {rows} rows")
        joined = [not self.apart and isinstance(c, str) and isinstance(t, str) for c, t in items]
        both = join(tokenizer, [item for item, whole in zip(items, joined, strict=True) if whole])
        texts = (t for item, whole in zip(items, joined, strict=True) if not whole for t in item if isinstance(t, str))
        alone = iter(tokenizer.encode_batch(list(texts)))
        found = []
        for item, whole in zip(items, joined, strict=True):
            if whole:
                context, ids, apart = next(both)
            else:
                context, ids = (next(alone) if isinstance(t, str) else [int(x) for x in t] for t in item)
                apart = False
            found.append(Encoded(context, ids + self._end(), apart))
        return found

    def _end(self) -> list[int]:
        """Returns the id that ends a text in a list, or an empty list if it is not to be predicted."""
        if not self.config.end:
            return []
        return [self.loaded.prompts.stop[0] if self.loaded.prompts.stop else self.loaded.tokenizer.eos_id]

    def fitted(self, item: Encoded, name: str) -> Encoded:
        """Returns an item that the model can read in one pass, with its context truncated if needed and allowed.

        Args:
            item: the ids.
            name: the name of the item in the error message.

        Raises:
            FlagError: the continuation is too long, or the context is and `truncate` is off.
        """
        family, written = self.loaded.config.family, len(item.continuation)
        # A decoder never reads the last token that it predicts.
        beside = 0 if family.paired else written - family.causal
        room = self.limit - self.around - beside
        least = int(family.continues and not self.around)
        started = len(self.begun) + written - 1 if family.paired else 0
        if room < least or started > self.limit:
            raise FlagError(
                f"{name}: its continuation has {written} tokens, but the model reads at most {self.limit}; shorten it, "
                "or score it as a text of its own, in windows"
            )
        if len(item.context) <= room:
            return item
        if not self.config.truncate:
            raise FlagError(
                f"{name}: its context has {len(item.context)} tokens, but the model has room for {room}; shorten it, "
                "or pass truncate=True, which cuts off its beginning"
            )
        return item._replace(context=item.context[len(item.context) - room :])

    def pieces(self, item: Encoded) -> Iterator[Piece]:
        """Yields the pieces of an item that fits into one pass."""
        context, ids, *_ = item
        if not ids:
            # The tokenizer dropped all of the continuation: its probability is one.
            return
        family = self.loaded.config.family
        if not family.causal:
            yield from self._hidden(context + ids, len(context))
        elif family.paired:
            yield self._predicted(self.begun, ids, self.context_ids(context))
        else:
            yield self._predicted(self.context_ids(context), ids)

    def windows(self, ids: list[int]) -> Iterator[Piece]:
        """Yields the pieces of a text of any length, in windows; each token is predicted once."""
        family, start = self.loaded.config.family, self.begun
        if not family.causal:
            room = self.limit - self.around
            for begin, end in self._spans(len(ids), room, room):
                low = max(0, end - room)
                yield from self._hidden(ids[low:end], begin - low)
        elif family.paired:
            room = self.limit - len(start)
            for begin, end in self._spans(len(ids), room + 1, room):
                inputs = start + ids[max(0, end - 1 - room) : begin]
                yield self._predicted(inputs, ids[begin:end], self.context_ids([]))
        else:
            # Only the first windows include `head`: later ones have dropped it with the beginning of the text.
            head = list(self.loaded.prompts.before) or self.context_ids([])
            row = head + ids
            for begin, end in self._spans(len(ids), self.limit - len(head) + 1, self.limit):
                inputs = row[max(0, len(head) + end - 1 - self.limit) : len(head) + begin]
                yield self._predicted(inputs, ids[begin:end])

    def check_windows(self) -> None:
        """Raises FlagError if a window has no room for the tokens that it should predict."""
        family = self.loaded.config.family
        taken = 0 if family.continues else len(self.begun) if family.paired else self.around
        room = self.limit - taken
        if room < 1 or (self.config.stride or 1) > room:
            raise FlagError(
                f"stride={self.config.stride}: a window of {self.limit} tokens has room for {room}; use a smaller "
                "stride or a larger max_length"
            )

    def _spans(self, count: int, first: int, others: int) -> Iterator[tuple[int, int]]:
        """Yields the range (begin, end) of the tokens that each window predicts; `end` is exclusive.

        Args:
            count: tokens of the text.
            first: tokens that the first window has room for.
            others: tokens that each later window has room for.
        """
        begin, end = 0, min(first, count)
        while begin < count:
            yield begin, end
            begin, end = end, min(end + (self.config.stride or others), count)

    def context_ids(self, ids: list[int]) -> list[int]:
        """Returns a context in the prompt format; if that gives no ids, the tokenizer's bos (or eos) id."""
        whole = self.loaded.prompts.around(ids)
        if whole:
            return whole
        roles = self.loaded.tokenizer.role_ids
        first = roles.get("bos", roles.get("eos"))
        if first is None:
            raise FlagError("the context is empty, and the tokenizer has no token that begins or ends a text; give one")
        return [first]

    def _predicted(self, inputs: list[int], targets: list[int], source: list[int] | None = None) -> Piece:
        """Returns the piece in which `targets` follow `inputs`."""
        tokens = inputs + targets[:-1]
        return Piece(tokens, range(len(inputs) - 1, len(tokens)), targets, source, prefix=len(inputs))

    def _hidden(self, text: list[int], begin: int) -> Iterator[Piece]:
        """Yields the pieces in which an encoder predicts masked tokens of a text from index `begin` on."""
        return (self._drawn if self.loaded.unmasks else self._masked)(text, begin)

    def _drawn(self, text: list[int], begin: int) -> Iterator[Piece]:
        """Yields a piece for each of several sets of tokens, which are masked together."""
        first, row = len(self.loaded.prompts.before) + begin, self.loaded.prompts.around(text)
        for places, factor in mask_sets(len(text) - begin, self.config.draws):
            masked, at = list(row), [first + i for i in places]
            for i in at:
                masked[i] = self.loaded.tokenizer.mask_id
            yield Piece(masked, at, [row[i] for i in at], factor=factor)

    def _masked(self, text: list[int], begin: int) -> Iterator[Piece]:
        """Yields a piece for each token of a text from index `begin` on, in which that token is masked."""
        before, tokenizer = len(self.loaded.prompts.before), self.loaded.tokenizer
        row = self.loaded.prompts.around(text)
        for i in range(begin, len(text)):
            stop = i + 1
            if self.config.within_word:
                while stop < len(text) and not self._starts_word(text[stop]):
                    stop += 1
            masked = list(row)
            masked[before + i : before + stop] = [tokenizer.mask_id] * (stop - i)
            yield Piece(masked, [before + i], [text[i]])

    def _starts_word(self, token: int) -> bool:
        known = self.loaded.tokenizer.word_start
        return token >= len(known) or bool(known[token])
