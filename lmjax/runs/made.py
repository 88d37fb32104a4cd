"""Workdirs that hold the parameters of a model and no optimizer: converted checkpoints, and averages of models."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from lmjax.adapters.config import AdapterConfig
from lmjax.config import Config, default_config, from_json, replace
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.interop.generation import GENERATION
from lmjax.interop.sentence import write_sentence
from lmjax.interop.shards import read_json
from lmjax.objectives.embedding import Embedding
from lmjax.runs.identity import IDENTITY, environment
from lmjax.runs.learned import recall
from lmjax.runs.pretrained import HEADS_FIELD, MADE_OF, ORIGIN, Pretrained
from lmjax.runs.workdir import CONFIG, claim_workdir
from lmjax.strict_json import write_json
from lmjax.training.checkpoint import Checkpoints


def config_of(source: Pretrained) -> Config:
    """Returns the config of a run; of a Hugging Face checkpoint, that of the workdir that holds it.

    It has no adapter: `Pretrained.params` has merged that of the run.
    """
    if (source.folder / CONFIG).is_file() and "model_type" not in read_json(source.folder / CONFIG):
        known = recall(from_json(source.folder / CONFIG), source.folder)
        return known.with_fields({"model": source.config, "adapter": AdapterConfig()})
    base = default_config((source.objective,), source.config.architecture)
    return replace(
        base,
        {
            "model": source.config.model_dump(),
            "init_from": str(source.folder),
            "tokenizer.path": str(source.folder),
            "task.length": min(128, source.config.max_length),
        },
    )


def write_model(
    workdir: pathlib.Path,
    source: Pretrained,
    params: Any,
    made_of: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> None:
    """Makes a workdir with parameters of a model; everything else is that of `source`.

    Args:
        workdir: the new workdir.
        source: a run, a converted checkpoint or a Hugging Face folder.
        params: of a model with the config of `source`.
        made_of: what the parameters were made of; None: they are those of `source`.
        fields: values of the config that differ from those of `source`, by dotted path.
    """
    config = replace(config_of(source), fields or {})
    with claim_workdir(workdir, config) as claim:
        with Checkpoints(workdir, config.checkpoint, claim.saved) as checkpoints:
            checkpoints.save(0, {"params": params})
        load_tokenizer(str(source.folder)).save_in(workdir)
        if not source.origin and (source.folder / IDENTITY).is_file():
            write_json(workdir / IDENTITY, read_json(source.folder / IDENTITY))
        if source.origin:
            write_json(workdir / ORIGIN, dict(source.origin) | {HEADS_FIELD: source.heads})
            if (source.folder / GENERATION).is_file():
                write_json(workdir / GENERATION, read_json(source.folder / GENERATION))
            if Embedding.name in source.tasks:
                write_sentence(workdir, source.config, source.length)
        if made_of is not None:
            write_json(workdir / MADE_OF, made_of)
        write_json(workdir / "env.json", environment())
        claim.done()
