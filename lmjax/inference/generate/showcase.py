"""What a freshly trained model of any family makes of a held-out text, as lines to print."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from lmjax.data.store import Store
from lmjax.data.vocabulary import Vocabulary
from lmjax.inference.generate.fill_mask import fill_mask
from lmjax.inference.generate.generate import GenerateConfig, Generation, generate
from lmjax.inference.generate.sampling import SamplingConfig
from lmjax.inference.loaded import LoadedModel
from lmjax.objectives.span_corruption import SpanCorruptionConfig, corrupt
from lmjax.streams import random_stream

WORDS = 48


def showcase(loaded: LoadedModel, store: Store, pairs: bool) -> str:
    """Returns a few lines: a held-out text, and what the model continues, fills in or restores of it.

    Empty if the model predicts no tokens.

    Args:
        loaded: the model.
        store: held-out documents.
        pairs: whether they are sources and targets.
    """
    if not loaded.model.has_vocabulary:
        return ""
    document = int(np.argmax(store.lengths >= min(WORDS, store.lengths.max())))
    # Special symbols stand around the text, and a decoder writes behind it: a third of the room is safe for all.
    count = min(WORDS, int(store.lengths[document]), max(4, loaded.config.max_length // 3))
    tokens = store.tokens(document, 0, count)
    if pairs:
        return _translate(loaded, store, document)
    if loaded.config.family.continues:
        prompt, decode = tokens[: max(1, len(tokens) // 3)], loaded.tokenizer.decode
        written = _continued(loaded, loaded.prompts.around(prompt.tolist()), 2 * WORDS)
        return f"a held-out prompt:\n{_framed(decode(prompt.tolist()))}\ncontinued:\n{_framed(written)}"
    if not loaded.config.family.causal:
        return _fill(loaded, tokens)
    return _restore(loaded, tokens)


def _continued(loaded: LoadedModel, prompt: Sequence[int], count: int) -> str:
    """Returns at most `count` tokens of text that a decoder writes behind a prompt."""
    room = loaded.config.max_length - len(prompt)
    sampling = SamplingConfig(temperature=0.8, top_k=40)
    return generate(loaded, [prompt], GenerateConfig(max_new_tokens=min(count, room), sampling=sampling))[0][0].text


def _written(loaded: LoadedModel, source: np.ndarray, count: int) -> Generation:
    """Returns at most `count` tokens that an encoder-decoder writes for a source, the likeliest one at each step."""
    return generate(loaded, [source.tolist()], GenerateConfig(max_new_tokens=count))[0][0]


def _framed(text: str) -> str:
    return textwrap.indent(text, "  | ", lambda line: True)


def _fill(loaded: LoadedModel, tokens: np.ndarray) -> str:
    tokenizer = loaded.tokenizer
    masked = np.arange(3, len(tokens), 7)
    row = tokens.copy()
    row[masked] = tokenizer.mask_id
    fillings = fill_mask(loaded, [loaded.prompts.around(row.tolist())], top_k=1)[0]
    shown = [tokenizer.decode([t]) if i not in masked else "[MASK]" for i, t in enumerate(tokens.tolist())]
    holes = [tokenizer.decode([t]) for t in tokens[masked].tolist()]
    pairs = ", ".join(f"{hole!r} -> {best[0].text!r}" for hole, best in zip(holes, fillings, strict=True))
    return f"a held-out text:\n{_framed(''.join(shown))}\nmasked -> filled in: {pairs}"


def _restore(loaded: LoadedModel, tokens: np.ndarray) -> str:
    rng, tokenizer = random_stream(0, "showcase"), loaded.tokenizer
    source, target = corrupt(tokens, tokenizer.sentinel_ids, tokenizer.eos_id, SpanCorruptionConfig(), rng)
    written = _written(loaded, source, 2 * len(target)).ids
    order = {t: i for i, t in enumerate(tokenizer.sentinel_ids.tolist())}
    shown = [f"<{order[t]}>" if t in order else tokenizer.decode([t]) for t in source[:-1].tolist()]
    true, guessed = (_spans(ids, order, tokenizer) for ids in (target.tolist(), written))
    pairs = ", ".join(f"<{i}> {span!r} -> {guessed.get(i)!r}" for i, span in true.items())
    return f"a held-out text:\n{_framed(''.join(shown))}\ncut out -> restored: {pairs}"


def _spans(ids: Sequence[int], order: dict[int, int], tokenizer: Vocabulary) -> dict[int, str]:
    """Returns the text behind every sentinel, by the sentinel's number."""
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in ids:
        if token in order:
            current = spans.setdefault(order[token], [])
        elif token != tokenizer.eos_id:
            current.append(token)
    return {number: tokenizer.decode(span) for number, span in spans.items()}


def _translate(loaded: LoadedModel, store: Store, document: int) -> str:
    tokenizer = loaded.tokenizer
    middle, room = int(store.segments(document)[1]), loaded.config.max_length // 3
    source = store.tokens(document, 0, min(middle, room - 2))
    target = store.tokens(document, middle, int(store.lengths[document]) - middle)
    row = np.asarray(loaded.prompts.around(source.tolist()))
    count = min(WORDS, room)
    if loaded.config.family.continues:
        written = _continued(loaded, row.tolist(), count)
    else:
        written = _written(loaded, row, count).text
    texts = (tokenizer.decode(source.tolist()), tokenizer.decode(target.tolist()), written)
    titles = ("a held-out source:", "its target:", "written:")
    return "\n".join(f"{title}\n{_framed(text)}" for title, text in zip(titles, texts, strict=True))
