"""Whether a model generates the same texts alone and together, with the probabilities of a pass without a cache."""

from __future__ import annotations

import jax
import numpy as np

from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate
from lmjax.inference.generate.text import Generation
from lmjax.inference.loaded import LoadedModel
from lmjax.streams import random_stream

_PROMPTS, _MOST_TOKENS = 8, 12


def differing_texts(loaded: LoadedModel, tolerance: float) -> tuple[float, str]:
    """Returns the largest relative difference of a text's log-probability, and the first text that differs, or "".

    Eight prompts of different lengths are continued greedily in batches of one and of eight; each continuation is then
    read in one pass without a cache.

    Args:
        loaded: a decoder or an encoder-decoder in float32.
        tolerance: relative.
    """
    longest = min(loaded.config.max_length, loaded.length or loaded.config.max_length)
    new = min(_MOST_TOKENS, max(1, longest // 2))
    draw, known = random_stream(0, "selfcheck prompts"), np.flatnonzero(loaded.tokenizer.is_text)
    lengths = np.linspace(1, max(1, longest - new - 2), _PROMPTS).astype(int)
    prompts = [draw.choice(known, size=length).tolist() for length in lengths]
    one, together = (_texts(loaded, prompts, new, size) for size in (1, _PROMPTS))
    scored = _scores(loaded, prompts, together)
    worst, where = 0.0, ""
    for number, (alone, beside, whole) in enumerate(zip(one, together, scored, strict=True), 1):
        if alone.ids != beside.ids:
            where = where or f"prompt {number} alone and among {_PROMPTS}"
            continue
        for name, other in (("alone", alone.score), ("without a cache", whole)):
            difference = abs(beside.score - other) / max(abs(beside.score), 1.0)
            worst = max(worst, difference)
            if not difference <= tolerance:
                where = where or f"the log-probability of prompt {number}'s text {name}"
    return worst, where


def _texts(loaded: LoadedModel, prompts: list[list[int]], new: int, size: int) -> list[Generation]:
    """Returns the greedy continuation of each prompt, `size` prompts at a time."""
    with jax.default_matmul_precision("highest"):
        found = generate(loaded, prompts, GenerateConfig(max_new_tokens=new, batch_size=size))
    return [texts[0] for texts in found]


def _scores(loaded: LoadedModel, prompts: list[list[int]], texts: list[Generation]) -> list[float]:
    """Returns the log-probability of each continuation by one pass over its whole row."""
    form, ids = loaded.prompts, [list(text.ids) for text in texts]
    if loaded.config.family.paired:
        output, before = loaded(prompts, targets=ids), [len(form.start)] * len(ids)
    else:
        output = loaded([[*prompt, *own] for prompt, own in zip(prompts, ids, strict=True)])
        before = [len(prompt) for prompt in prompts]
    log_probs = np.asarray(jax.nn.log_softmax(output.logits.astype(np.float32)))
    free = len(form.forced)
    return [
        float(sum(log_probs[row, start - 1 + i, token] for i, token in enumerate(own) if i >= free))
        for row, (start, own) in enumerate(zip(before, ids, strict=True))
    ]
