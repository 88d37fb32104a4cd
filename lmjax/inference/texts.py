"""Texts as arguments: what is taken for one, and lists of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.errors import FlagError

# A text, its token ids, or a conversation: messages with a role and a content.
Text = str | Sequence[int] | Sequence[Mapping[str, str]]
Texts = Text | Sequence[Text]


def is_conversation(text: object) -> bool:
    """Returns whether a prompt is a list of messages."""
    return isinstance(text, Sequence) and len(text) > 0 and isinstance(text[0], Mapping)


def as_list(texts: Texts, name: str) -> list[Text]:
    """Returns texts as a list: a single text, or the ids of one, becomes a list of one item.

    Args:
        texts: one or several.
        name: the name of the argument in error messages.

    Raises:
        FlagError: `texts` is empty or neither a text, nor ids, nor a list of them.
    """
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Sequence | np.ndarray):
        raise FlagError(f"{name} is {str(texts)[:80]!r}; give a text, or a list of texts or of lists of ids")
    if not len(texts):
        raise FlagError(f"{name}: is empty; give at least one text")
    return [texts] if isinstance(texts[0], int | np.integer | Mapping) else list(texts)


def check_list(values: object, name: str, what: str) -> None:
    """Raises FlagError if `values` is not a list, such as a single text.

    Args:
        values: should be a list.
        name: the name of the argument in error messages.
        what: what the list should hold, for the error message.
    """
    if isinstance(values, str):
        raise FlagError(f"{name}={values[:40]!r} is one text; give a list of {what}")
    if not isinstance(values, Sequence):
        raise FlagError(f"{name}={str(values)[:40]!r} is a {type(values).__name__}; give a list of {what}")
