"""The vectors of texts: one for each, whose cosines are the similarities of the texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel, check_arguments
from lmjax.inference.predict import row_outputs
from lmjax.inference.texts import check_list
from lmjax.model.heads import HEADS
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.embedding import Embedding, EmbeddingConfig


def embed(loaded: LoadedModel, texts: Sequence[str], *, width: int | None = None, batch_size: int = 32) -> np.ndarray:
    """Returns the vectors of texts, float32 `[texts, width]`; an empty text has one too.

    The config of the model says how a vector is made of the hidden states of a text (`head.vector_pooling`), and
    whether it has unit length (`head.unit_length`). A text is cut where the rows of the model end. Batches of another
    size give the same numbers up to rounding.

    Args:
        loaded: an encoder or a decoder, trained on any objective; one of `embedding` gives the best vectors.
        texts: the texts.
        width: the first so many numbers of each vector, for models that were trained for narrower vectors (Matryoshka);
            vectors of unit length have it again. None: all.
        batch_size: texts that are computed together.

    Raises:
        FlagError: the model is an encoder-decoder, `texts` is no list of texts, or `width` is too large.
    """
    check_arguments(loaded, None, EmbeddingConfig)
    check_list(texts, "texts", "texts")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise FlagError(f"texts: {str(wrong[0])[:40]!r} is not a text; give a list of texts")
    (head,), config = Embedding.heads, loaded.config
    if config.architecture not in HEADS[head].families:
        raise FlagError(f"this {config.family.label} has no vectors of texts; take {' or '.join(HEADS[head].families)}")
    if width is not None and not 1 <= width <= config.embed_dim:
        raise FlagError(f"width={width}: vectors of this model have {config.embed_dim} numbers; choose from 1 to that")
    tasks = {Embedding.name: loaded.tasks.get(Embedding.name, EmbeddingConfig())}
    own = dataclasses.replace(loaded, tasks=tasks)
    task = own.task
    ids = loaded.tokenizer.encode_batch(list(texts)) if texts else []
    rows = [task.row([np.array(each, np.int32)], loaded.prompts, task.length) for each in ids]
    model = LanguageModel(config, Embedding.heads)
    with loaded.on_devices():
        found = row_outputs(task, rows, model, loaded.params, mesh=loaded.mesh, batch_size=batch_size)
    vectors = np.array([each["vectors"][0] for each in found], np.float32).reshape(-1, config.embed_dim)[:, :width]
    if width is None or not config.head.unit_length:
        return vectors
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
