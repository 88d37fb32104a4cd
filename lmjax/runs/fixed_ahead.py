"""The shapes of what a planned step reads beside its state: an adapter's base, a teacher, a reference's predictions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.errors import FlagError
from lmjax.model.language_model import LanguageModel, abstract_params
from lmjax.model.quantized import QuantizationConfig, boxed_codes
from lmjax.objectives.preference import AnswerRows
from lmjax.parallel.mesh import on_mesh
from lmjax.runs.build import Run
from lmjax.runs.pretrained import open_pretrained
from lmjax.runs.teacher import check_teacher, teacher_config
from lmjax.training.fixed import Fixed
from lmjax.training.stages import Stage
from lmjax.training.teacher import Teacher

PyTree = Any


def abstract_fixed(run: Run, tokenizer: str) -> Fixed:
    """Returns the shapes, dtypes and shardings of the arrays that a run's step reads and never changes.

    Args:
        run: on text that stands in for its data.
        tokenizer: the place of the run's own tokenizer, which a teacher must share; empty: it would train one.

    Raises:
        FlagError: there is no such teacher, or it does not fit the run.
    """
    return Fixed(_base(run), _teacher(run, tokenizer))


def _base(run: Run) -> PyTree | None:
    """Returns the shapes of the parameters that an adapter's run does not train; None: it has no adapter."""
    config = run.config.adapted
    if config.kind == "none":
        return None
    whole = abstract_params(run.model.config, run.model.heads)
    kept = {part: x for part, x in whole.items() if part not in config.whole}
    if config.base_dtype == "int8":
        kept = boxed_codes(kept, QuantizationConfig(weights="int8"))
    return on_mesh(kept, run.mesh)


def _teacher(run: Run, tokenizer: str) -> Teacher | None:
    """Returns the shapes of a run's teacher; None: it has none."""
    config = run.config.teacher
    if not config.place:
        return None
    if not tokenizer:
        raise FlagError(
            f"--config.teacher.place={config.place}: the run needs the teacher's tokenizer; give "
            f"--config.tokenizer.path={config.place}"
        )
    source = open_pretrained(config.place)
    check_teacher(dataclasses.replace(run, tokenizer=load_tokenizer(tokenizer)), source)
    wanted = teacher_config(run.config, source.config)
    return Teacher(
        on_mesh(abstract_params(wanted, source.heads), run.mesh), config, LanguageModel(wanted, source.heads)
    )


def with_references(stage: Stage) -> Stage:
    """Returns a stage whose rows have zeros for what a reference predicts, if they need it: only shapes are read."""
    sources = []
    for source in stage.examples.sources:
        rows = source.rows
        if isinstance(rows, AnswerRows) and rows.objective.refers:
            rows = dataclasses.replace(rows, references=np.zeros((len(rows), 2), np.float32))
        sources.append(dataclasses.replace(source, rows=rows))
    return dataclasses.replace(stage, examples=dataclasses.replace(stage.examples, sources=tuple(sources)))
