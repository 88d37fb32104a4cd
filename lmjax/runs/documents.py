"""Writes the held-out losses of each document of a finished run to its workdir, for tables that compare runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax

from lmjax.config import from_json
from lmjax.errors import CheckpointError
from lmjax.evaluation.documents import DocumentLosses, document_losses, make_target_step
from lmjax.interop.shards import read_json
from lmjax.paths import expanded
from lmjax.runs.build import Run, build
from lmjax.runs.fit import layout
from lmjax.runs.identity import IDENTITY
from lmjax.runs.pretrained import open_pretrained
from lmjax.runs.references import referenced
from lmjax.training.checkpoint import saved_steps
from lmjax.training.evaluate import EvalSet

_PREFIX = "documents-"
# What of data.json decides the documents of an evaluation set besides the corpus itself.
_READING = ("pairs", "columns", "record_format", "bad_records")


def document_files(workdir: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the files of losses in a workdir by the name of the evaluation set."""
    return {path.stem.removeprefix(_PREFIX): path for path in sorted(workdir.glob(f"{_PREFIX}*.npz"))}


def read_documents(workdir: pathlib.Path) -> dict[str, DocumentLosses]:
    """Returns the losses of each document by evaluation set, as `score_documents` wrote them; empty: it was not called.

    Raises:
        DataError: a file is damaged.
    """
    found = {name: DocumentLosses.load(path) for name, path in document_files(workdir).items()}
    newest = saved_steps(workdir)[-1:]
    return {name: losses for name, losses in found.items() if not newest or losses.step == newest[0]}


def score_documents(place: str | os.PathLike[str]) -> dict[str, DocumentLosses]:
    """Returns the losses of each document by evaluation set, from a run's newest checkpoint, and writes them.

    The rows are those of the run's own evaluation. Sets whose losses were written for this checkpoint are only read.

    Raises:
        CheckpointError: the run has no checkpoint.
        DataError: its data or its config cannot be read.
        FlagError: the devices here do not fit the run's mesh or batch.
    """
    workdir = expanded(place)
    steps = saved_steps(workdir)
    if not steps:
        raise CheckpointError(f"{workdir}: has no checkpoint, so its documents cannot be scored; train it first")
    known = read_documents(workdir)
    config = from_json(workdir / "config.json")
    run = build(config, workdir)
    with layout(run):
        run = referenced(run)
    missing = [evaluated for evaluated in run.eval_sets if _file_name(evaluated.name) not in known]
    if missing:
        source = open_pretrained(workdir, steps[-1])
        params = source.params(run.model.config, run.mesh)
        # Without an adapter, which is merged into these parameters.
        run = dataclasses.replace(run, model=run.plain_model)
        found = scored(run, params, steps[-1], missing)
        for name, losses in found.items():
            losses.save(workdir / f"{_PREFIX}{_file_name(name)}.npz")
            known[_file_name(name)] = losses
    return known


def scored(run: Run, params: Any, step: int, sets: tuple[EvalSet, ...] | list[EvalSet]) -> dict[str, DocumentLosses]:
    """Returns the losses of each document of several evaluation sets of a run, by name.

    Args:
        run: the run.
        params: of its model, on its mesh.
        step: of the parameters.
        sets: the evaluation sets.
    """
    replicated = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())
    target_step = jax.jit(make_target_step(run.model, run.task), out_shardings=replicated)
    identity = read_json(run.workdir / IDENTITY)
    with layout(run):
        return {
            each.name: document_losses(
                each,
                target_step,
                params,
                mesh=run.mesh,
                token_bytes=run.token_bytes(),
                loss_weights=run.config.task.loss_weights(),
                fingerprint=_fingerprint(each, identity),
                tokenizer=run.tokenizer.fingerprint,
                at=step,
            )
            for each in sets
        }


def _fingerprint(evaluated: EvalSet, identity: Mapping[str, Any]) -> str:
    """Returns a digest of what decides the documents of a set as texts; no tokenizer and no model."""
    (store,) = evaluated.examples.stores.values()
    own = identity["evals"].get(evaluated.name)
    source = [own] if own else [identity["train"], identity["held_out"], identity["split"], evaluated.name]
    reading = [identity.get(name) for name in _READING]
    parts = json.dumps([source, reading, store.num_documents, store.num_bytes], sort_keys=True)
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def _file_name(name: str) -> str:
    """Returns the name of a set as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
