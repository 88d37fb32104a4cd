"""The probabilities that a classifier gives to its labels, for texts and pairs of texts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel, longest_row
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.classification import Classification
from lmjax.objectives.rows import text_row
from lmjax.parallel.mesh import batch_sharding, batch_shards

# Rows are as long as the least power of two from this on that their texts need, so few programs are compiled.
_SHORTEST = 16
# The longest row of a model whose positions have no limit and that does not say what it was trained on.
_LONGEST = 512

Pair = tuple[str, str]


def check_classifier(loaded: LoadedModel) -> None:
    """Raises FlagError if the model has no classifier with names for its labels."""
    if not loaded.labels:
        raise FlagError(
            f"this {loaded.config.family.label} has no classifier of single labels; train one with "
            f"--objective={Classification.name}"
        )


def probabilities(loaded: LoadedModel, texts: Sequence[Pair], batch_size: int = 32) -> np.ndarray:
    """Returns float64 `[texts, labels]`: the probabilities of the labels, in the order of `loaded.labels`.

    A text is cut where the rows of the model end. The length of a row depends on its own text alone, so that batches of
    another size give the same numbers up to rounding.

    Args:
        loaded: a model with a classifier.
        texts: (text, second text) of each row; the second may be empty.
        batch_size: rows that are computed together.

    Raises:
        FlagError: the model has no classifier.
    """
    check_classifier(loaded)
    sides = zip(*texts, strict=True)
    firsts, seconds = ([np.array(ids, np.int32) for ids in loaded.tokenizer.encode_batch(side)] for side in sides)
    rooms = (loaded.length, longest_row(loaded.config, decoder=loaded.config.family.causal), _LONGEST)
    limit = min(room for room in rooms if room is not None)
    form = loaded.prompts
    between = form.after or (loaded.tokenizer.eos_id,)
    extra = len(form.before) + len(form.after) + len(between)
    needed = [min(limit, max(_SHORTEST, len(a) + len(b) + extra)) for a, b in zip(firsts, seconds, strict=True)]
    lengths = [min(limit, 1 << (n - 1).bit_length()) for n in needed]
    rows = max(1, batch_size) + -max(1, batch_size) % batch_shards(loaded.mesh)
    found = np.zeros((len(texts), len(loaded.labels)))
    for length in sorted(set(lengths)):
        places = [i for i, n in enumerate(lengths) if n == length]
        for start in range(0, len(places), rows):
            part = places[start : start + rows]
            made = [
                text_row(form, (firsts[i], seconds[i]), between=between, length=length, pad_id=loaded.tokenizer.pad_id)
                for i in part
            ]
            made += [{name: np.zeros_like(x) for name, x in made[0].items()}] * (rows - len(part))
            batch = {name: np.stack([row[name] for row in made]) for name in made[0]}
            with loaded.on_devices():
                given = jax.device_put(batch, batch_sharding(loaded.mesh))
                logits = np.asarray(_logits(loaded.model, loaded.params, given), np.float64)[: len(part)]
            exponentials = np.exp(logits - logits.max(-1, keepdims=True))
            found[part] = exponentials / exponentials.sum(-1, keepdims=True)
    return found


@functools.partial(jax.jit, static_argnames="model")
def _logits(model: LanguageModel, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the classifier's float32 logits `[rows, labels]`."""
    (head,) = Classification.heads
    hidden = model.apply({"params": params}, batch)
    return model.apply({"params": params}, head, hidden, batch, method=LanguageModel.head)
