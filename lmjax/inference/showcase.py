"""What a freshly trained model of any family makes of a held-out text, as lines to print."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from lmjax.data.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.inference.sample import continuation, filled, restored
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.span_corruption import SpanCorruptionConfig, corrupt

PyTree = Any
WORDS = 48


def showcase(model: LanguageModel, params: PyTree, tokenizer: Tokenizer, store: Store, pairs: bool) -> str:
    """Returns a few lines: a held-out text, and what the model continues, fills in or restores of it.

    Empty if the model predicts no tokens.
    """
    if not model.has_vocabulary:
        return ""
    document = int(np.argmax(store.lengths >= min(WORDS, store.lengths.max())))
    # Special symbols stand around the text, and a decoder writes behind it: a third of the room is safe for all.
    count = min(WORDS, int(store.lengths[document]), max(4, model.config.max_length // 3))
    tokens = store.tokens(document, 0, count)
    if pairs:
        return _translate(model, params, tokenizer, store, document)
    if model.config.architecture == "decoder":
        prompt = tokens[: max(1, len(tokens) // 3)]
        room = model.config.max_length - len(prompt) - 1
        written = continuation(model, params, tokenizer, prompt.tolist(), min(2 * WORDS, room))
        return f"a held-out prompt:\n{_framed(tokenizer.decode(prompt.tolist()))}\ncontinued:\n{_framed(written)}"
    if model.config.architecture == "encoder":
        return _fill(model, params, tokenizer, tokens)
    return _restore(model, params, tokenizer, tokens)


def _framed(text: str) -> str:
    return textwrap.indent(text, "  | ", lambda line: True)


def _fill(model: LanguageModel, params: PyTree, tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    masked = np.arange(3, len(tokens), 7)
    predicted = filled(model, params, tokenizer, tokens.tolist(), masked)
    shown = [tokenizer.decode([t]) if i not in masked else "[MASK]" for i, t in enumerate(tokens.tolist())]
    holes, guesses = ([tokenizer.decode([t]) for t in ids] for ids in (tokens[masked].tolist(), predicted))
    pairs = ", ".join(f"{hole!r} -> {guess!r}" for hole, guess in zip(holes, guesses, strict=True))
    return f"a held-out text:\n{_framed(''.join(shown))}\nmasked -> filled in: {pairs}"


def _restore(model: LanguageModel, params: PyTree, tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    source, target = corrupt(tokens, tokenizer.sentinel_ids, tokenizer.eos_id, SpanCorruptionConfig(), rng)
    written = restored(model, params, tokenizer, source, 2 * len(target))
    order = {t: i for i, t in enumerate(tokenizer.sentinel_ids.tolist())}
    shown = [f"<{order[t]}>" if t in order else tokenizer.decode([t]) for t in source[:-1].tolist()]
    true, guessed = (_spans(ids.tolist(), order, tokenizer) for ids in (target, written))
    pairs = ", ".join(f"<{i}> {span!r} -> {guessed.get(i)!r}" for i, span in true.items())
    return f"a held-out text:\n{_framed(''.join(shown))}\ncut out -> restored: {pairs}"


def _spans(ids: list[int], order: dict[int, int], tokenizer: Tokenizer) -> dict[int, str]:
    """Returns the text behind every sentinel, by the sentinel's number."""
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in ids:
        if token in order:
            current = spans.setdefault(order[token], [])
        elif token != tokenizer.eos_id:
            current.append(token)
    return {number: tokenizer.decode(span) for number, span in spans.items()}


def _translate(model: LanguageModel, params: PyTree, tokenizer: Tokenizer, store: Store, document: int) -> str:
    middle, room = int(store.segments(document)[1]), model.config.max_length // 3
    source = np.append(store.tokens(document, 0, min(middle, room - 1)), tokenizer.eos_id)
    target = store.tokens(document, middle, int(store.lengths[document]) - middle)
    if model.config.architecture == "decoder":
        written = continuation(model, params, tokenizer, source.tolist(), min(WORDS, room))
    else:
        written = tokenizer.decode(restored(model, params, tokenizer, source, min(WORDS, room)).tolist())
    texts = (tokenizer.decode(source.tolist()), tokenizer.decode(target.tolist()), written)
    titles = ("a held-out source:", "its target:", "written:")
    return "\n".join(f"{title}\n{_framed(text)}" for title, text in zip(titles, texts, strict=True))
