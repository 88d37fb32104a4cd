"""The ids of a context and of the continuation after it, if a model reads both as one text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lmjax.data.vocabulary import Vocabulary

# A continuation is encoded after one of these texts, so that no space is added to its beginning.
_ANCHORS = (".", "\n", "0", *"aeiounst")


class Joined(NamedTuple):
    """The ids of a context and of its continuation.

    Attributes:
        context: ids of the context without the white space at its end.
        continuation: ids of that white space and the continuation.
        apart: whether the two were encoded separately, because the ids of the joint text cannot be split: a token spans
            both, or the context is tokenised differently in the joint text.
    """

    context: list[int]
    continuation: list[int]
    apart: bool


def join(tokenizer: Vocabulary, pairs: Sequence[tuple[str, str]]) -> Iterator[Joined]:
    """Yields the ids of each (context, continuation); the continuation's ids decode to all of it.

    They are the ids of the joint text if that begins with the tokens of the context. Otherwise the two are encoded
    separately: the joint text's tokens after as many as the context has would spell only a part of the continuation.
    """
    texts = [text for context, continuation in pairs for text in (context.rstrip(), context + continuation)]
    encoded = iter(tokenizer.encode_batch(texts))
    for context, continuation in pairs:
        first, whole = next(encoded), next(encoded)
        ids = whole[len(first) :] if whole[: len(first)] == first else []
        apart = [] if ids else _behind(tokenizer, first, context[len(context.rstrip()) :] + continuation, whole)
        yield Joined(first, ids or apart, bool(apart))


def _behind(tokenizer: Vocabulary, context: list[int], rest: str, whole: list[int]) -> list[int]:
    """Returns ids for `rest` such that `context` and they decode to the same text as `whole`.

    A tokenizer may add a space before a text, or mark tokens that continue a word: then `rest` is encoded after an
    anchor text, whose ids are removed. If this does not give the joint text either (a tokenizer that drops or adds
    white space), the ids are those of `rest` encoded alone.
    """
    alone, text = tokenizer.encode(rest), tokenizer.decode(whole)
    if tokenizer.decode([*context, *alone]) == text:
        return alone
    for anchor in _ANCHORS:
        before, both = tokenizer.encode_batch([anchor, anchor + rest])
        found = both[len(before) :]
        if both[: len(before)] == before and tokenizer.decode([*context, *found]) == text:
            return found
    return alone
