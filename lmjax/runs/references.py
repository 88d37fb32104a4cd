"""Log-probabilities that the model a run starts from gives to its data: computed once and stored beside the data.

They are files in the cache, in a folder whose name is a digest of all that decides them: the store of the data, the
parameters of the reference, and what its rows hold. Each file is complete or absent, so that a run that is killed while
they are computed goes on with the next file, and another run with the same data and the same reference reads them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmjax.errors import ConfigMismatchError, DataError, FlagError, SaveError
from lmjax.interop.shards import read_json
from lmjax.model.language_model import abstract_params
from lmjax.model.parameters import flat
from lmjax.objectives.base import Batch, Features
from lmjax.objectives.preference import AnswerRows
from lmjax.objectives.task import Examples
from lmjax.parallel.gather import on_host
from lmjax.parallel.mesh import to_device
from lmjax.phases import phase
from lmjax.runs.adopt import initial_parameters
from lmjax.runs.build import Run
from lmjax.streams import random_stream
from lmjax.strict_json import write_json
from lmjax.training.checkpoint import saved_steps
from lmjax.training.forward import evaluation_forward

PyTree = Any
# The file in a workdir with the digest of the reference's parameters.
REFERENCE = "reference.json"
# Rows in a file.
_ROWS = 1024
_FORMAT = 1  # raise it when a row's log-probabilities change


def referenced(run: Run) -> Run:
    """Returns the run with the log-probabilities of its reference in its rows; unchanged if no objective needs them.

    The layout of the run must be active. The reference is not read if the run has a checkpoint and all
    log-probabilities are stored.

    Raises:
        FlagError: a part of the model is new, so that the reference is not known.
        ConfigMismatchError: the model that the run started from has changed since.
        SaveError: the log-probabilities cannot be written.
    """
    if not any(o.refers for o in run.task.objectives):
        return run
    reference = _Reference(run)
    stages = tuple(dataclasses.replace(s, examples=reference.examples(s.examples)) for s in run.stages)
    sets = tuple(dataclasses.replace(s, examples=reference.examples(s.examples)) for s in run.eval_sets)
    if jax.process_index() == 0:
        write_json(run.workdir / REFERENCE, {"parameters": reference.digest})
    return dataclasses.replace(run, stages=stages, eval_sets=sets)


def digest_of(params: PyTree) -> str:
    """Returns a digest of the names, shapes and values of parameters, the same in each process."""
    found = hashlib.blake2b(digest_size=16)
    for path, array in sorted(flat(params).items()):
        values = np.ascontiguousarray(on_host(array))
        found.update(f"{path} {values.dtype} {values.shape}\n".encode())
        found.update(values.view(np.uint8) if values.ndim else values.tobytes())
    return found.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Reference:
    """The model that a run starts from.

    Attributes:
        run: the run.
    """

    run: Run

    @functools.cached_property
    def params(self) -> PyTree:
        """Returns the parameters."""
        config = self.run.config
        params = initial_parameters(self.run, progress=False)
        wanted = flat(abstract_params(self.run.model.config, self.run.model.heads))
        if new := sorted(wanted.keys() - flat(params).keys()):
            name = next(o.name for o in self.run.task.objectives if o.refers)
            raise FlagError(
                f"--init_from={config.init_from}: {new[0]} is new, and --objective={name} compares the model with the "
                "one that it starts from; start from a model of the same kind, without --config.fresh"
            )
        known = self._recorded
        if known and digest_of(params) != known:
            raise ConfigMismatchError(
                f"--init_from={config.init_from}: its parameters are not those that this run started from, and the "
                "log-probabilities that it needs of them are no longer stored; restore that model, or use another "
                "--workdir"
            )
        return params

    @functools.cached_property
    def digest(self) -> str:
        """Returns the digest of the parameters; of a run with a checkpoint, that with which it began."""
        return self._recorded or digest_of(self.params)

    @property
    def _recorded(self) -> str | None:
        path = self.run.workdir / REFERENCE
        return read_json(path)["parameters"] if saved_steps(self.run.workdir) and path.is_file() else None

    def examples(self, examples: Examples) -> Examples:
        """Returns examples whose rows have the log-probabilities."""
        sources = []
        for source in examples.sources:
            rows = source.rows
            if isinstance(rows, AnswerRows) and rows.objective.refers:
                rows = dataclasses.replace(rows, references=self._stored(rows, source.name))
            sources.append(dataclasses.replace(source, rows=rows))
        return dataclasses.replace(examples, sources=tuple(sources))

    def _stored(self, rows: AnswerRows, name: str) -> np.ndarray:
        """Returns the log-probabilities of the answers of each row, float32 `[rows, 2]`; computes those not stored."""
        folder = self._folder(rows)
        spans = [range(start, min(start + _ROWS, len(rows))) for start in range(0, len(rows), _ROWS)]
        known = [_read(folder, span) for span in spans]
        missing = np.array([each is None for each in known])
        if jax.process_count() > 1:
            # All processes compute what one of them lacks.
            missing = multihost_utils.process_allgather(missing).any(axis=0)
        if missing.any():
            score = _scorer(self.run, rows)
            count = sum(len(span) for span, absent in zip(spans, missing, strict=True) if absent)
            with phase(f"computing the log-probabilities of the reference for {count:,} records of {name}"):
                for number in np.flatnonzero(missing):
                    known[number] = self._computed(rows, spans[number], score)
                    _write(folder, spans[number], known[number])
        return np.concatenate(known)

    def _folder(self, rows: AnswerRows) -> pathlib.Path:
        objective, form, model = rows.objective, rows.objective.form, self.run.model.config
        parts = {
            "format": _FORMAT,
            "store": rows.store.fingerprint,
            "reference": self.digest,
            "objective": objective.name,
            "lengths": [objective.length, objective.target_length],
            "prompt": [form.before, form.after, form.start, form.stop],
            "dtype": model.dtype,
        }
        digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
        return pathlib.Path(self.run.config.data.cache_path) / f"references-{digest}"

    def _computed(self, rows: AnswerRows, span: range, score: Callable[[PyTree, Batch], jax.Array]) -> np.ndarray:
        run, found = self.run, []
        for batch in _batches(rows, span, run.config.batch_size):
            found.append(jax.device_get(score(self.params, to_device(batch, run.mesh))))
        values = np.concatenate(found)[: len(span)].astype(np.float32)
        if not np.isfinite(values).all():
            raise DataError(
                f"--init_from={run.config.init_from}: gives record {span[int(np.argmin(np.isfinite(values).all(1)))]} "
                "a log-probability that is not finite; start from another model"
            )
        return values


def _scorer(run: Run, rows: AnswerRows) -> Callable[[PyTree, Batch], jax.Array]:
    """Returns the compiled function from parameters and a batch of rows to log-probabilities, `[rows, 2]`."""
    replicated = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())

    def score(params: PyTree, batch: Batch) -> jax.Array:
        return rows.objective.log_probs(evaluation_forward(run.plain_model, params, batch), batch)[0]

    return jax.jit(score, out_shardings=replicated)


def _batches(rows: AnswerRows, span: range, batch_size: int) -> Iterator[Features]:
    """Yields this process's share of batches of the rows of a span; the last one is filled up with its last row."""
    share = batch_size // jax.process_count()
    for start in range(span.start, span.stop, batch_size):
        first = start + share * jax.process_index()
        numbers = [min(i, span.stop - 1) for i in range(first, first + share)]
        features = [rows.features(i, random_stream(0, "reference", i)) for i in numbers]
        yield {name: np.stack([each[name] for each in features]) for name in features[0]}


def _path(folder: pathlib.Path, span: range) -> pathlib.Path:
    return folder / f"{span.start}-{span.stop}.npy"


def _read(folder: pathlib.Path, span: range) -> np.ndarray | None:
    """Returns the log-probabilities of a span of rows; None if they are not stored, or the file is damaged."""
    try:
        values = np.load(_path(folder, span), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return values if values.shape == (len(span), 2) and values.dtype == np.float32 else None


def _write(folder: pathlib.Path, span: range, values: np.ndarray) -> None:
    """Writes the log-probabilities of a span of rows; a reader finds the whole file or none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            np.save(file, values)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, _path(folder, span))
    except OSError as e:
        raise SaveError(
            f"data.cache_dir: cannot write the log-probabilities of the reference in {str(folder)!r} ({e.strerror})"
        ) from e
