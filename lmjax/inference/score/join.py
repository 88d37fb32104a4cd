"""The ids of a context and of the continuation behind it, where a model reads both as one text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lmjax.data.vocabulary import Vocabulary

# What a continuation is encoded behind, so that it is not taken for the beginning of a text.
_ANCHORS = (".", "\n", "0", *"aeiounst")


class Joined(NamedTuple):
    """The ids of a context and of its continuation.

    Attributes:
        context: of the context, without the white space at its end.
        continuation: of that white space and the continuation.
        apart: whether they are not those of the joint text, in which some token belongs to both, or the context's
            tokens are others.
    """

    context: list[int]
    continuation: list[int]
    apart: bool


def join(tokenizer: Vocabulary, pairs: Sequence[tuple[str, str]]) -> Iterator[Joined]:
    """Yields the ids of each (context, continuation), of which the continuation's decode to the whole of it.

    They are those of the joint text wherever that begins with the tokens of the context alone. Elsewhere the two are
    encoded apart: what remained of the joint text behind as many tokens would be a part of the continuation, or none.
    """
    texts = [text for context, continuation in pairs for text in (context.rstrip(), context + continuation)]
    encoded = iter(tokenizer.encode_batch(texts))
    for context, continuation in pairs:
        first, whole = next(encoded), next(encoded)
        ids = whole[len(first) :] if whole[: len(first)] == first else []
        apart = [] if ids else _behind(tokenizer, first, context[len(context.rstrip()) :] + continuation, whole)
        yield Joined(first, ids or apart, bool(apart))


def _behind(tokenizer: Vocabulary, context: list[int], rest: str, whole: list[int]) -> list[int]:
    """Returns the ids of `rest` behind the ids `context`, together with which they decode to what `whole` decodes to.

    A tokenizer may put a space in front of a text, or mark what goes on with a word: then they are taken from behind
    another text. Where nothing decodes to the joint text (a tokenizer that drops or adds white space), they are those
    of `rest` alone.
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
