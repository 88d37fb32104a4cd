"""Pipelines: one call from texts to labels, entities, answers, texts or vectors, for any trained model.

    classify = lmjax.pipelines.pipeline("text-classification", model="runs/sentiment")
    classify(["a fine film", "a dull one"])    # [{"label": "positive", "score": 0.99}, ...]

The names and the shapes of the results are those of the pipelines of transformers 4, so that code for those works on
models of lmjax too. One text gives one result, and a list gives a list. Rows are computed in batches of few lengths, so
a second call with texts of similar lengths compiles nothing.

This room may import everything but commands. To add a pipeline: a subclass of `Pipeline` in a file here and a line in
PIPELINES.
"""

from __future__ import annotations

import os
from typing import Any

from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.nearest import choose
from lmjax.pipelines import answers, classes, generation, masks, tokens, vectors
from lmjax.pipelines.base import Pipeline
from lmjax.runs.trained import load_model

PIPELINES: dict[str, type[Pipeline]] = {
    "text-classification": classes.TextClassification,
    "zero-shot-classification": classes.ZeroShotClassification,
    "token-classification": tokens.TokenClassification,
    "question-answering": answers.QuestionAnswering,
    "fill-mask": masks.FillMask,
    "text-generation": generation.TextGeneration,
    "summarization": generation.Summarization,
    "translation": generation.Translation,
    "feature-extraction": vectors.FeatureExtraction,
    "sentence-similarity": vectors.SentenceSimilarity,
}
# Other names of transformers for the same.
_ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}


def pipeline(
    task: str, model: str | os.PathLike[str] | LoadedModel, *, batch_size: int = 32, dtype: str | None = None
) -> Pipeline:
    """Returns the pipeline of a task.

    Args:
        task: its name, such as text-classification (`PIPELINES`).
        model: a workdir, a folder or a name of Hugging Face, or what `lmjax.load_model` returned.
        batch_size: texts that are computed together.
        dtype: of parameters and computation, as for `lmjax.load_model`; None: the model's own.

    Raises:
        FlagError: there is no such task, or the model is not for it.
    """
    name = _ALIASES.get(task, task)
    if name not in PIPELINES:
        raise FlagError(f"pipeline: {choose('task', str(task), list(PIPELINES))}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise FlagError(f"batch_size={batch_size!r}: give a whole number from 1 on")
    loaded: Any = model if isinstance(model, LoadedModel) else load_model(model, dtype=dtype)
    return PIPELINES[name](loaded, batch_size)
