"""The metrics of tasks on records that a run computes at each evaluation, besides its losses, and their figures."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from lmjax.data.store import Store
from lmjax.errors import FlagError
from lmjax.evaluation.generated import NEEDS, targets, text_metrics
from lmjax.evaluation.measures import MEASURES
from lmjax.evaluation.predicted import Evaluated
from lmjax.inference.generate.beam import BeamConfig
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.predict import predictions
from lmjax.objectives.records import RecordTask, TokenRecord
from lmjax.parallel.gather import on_host, over_processes
from lmjax.runs.best import falling
from lmjax.runs.build import Run
from lmjax.runs.trained import trained_model
from lmjax.training.board import write_images
from lmjax.training.evaluate import EachBatch, EvalSet, Measured

_FOLDER = "figures"


def measured(run: Run) -> dict[str, Measured]:
    """Returns what a run measures on its evaluation sets, by the name of the set; empty if it trains no such task."""
    tasks = [o for o in run.task.objectives if isinstance(o, RecordTask) and _installed(o.name, MEASURES[o.name].needs)]
    if tasks:
        better_low = falling([task.name for task in tasks])
        return {s.name: Measured(TaskMetrics.of(run, s, tasks), better_low) for s in run.eval_sets}
    count = run.config.evaluation.generate
    pairs = [o.name for o in run.task.objectives if o.wants_pairs]
    if not count:
        return {}
    if not pairs:
        raise FlagError(f"--config.evaluation.generate={count}: needs an objective of pairs; set it to 0")
    if not _installed(pairs[0], NEEDS):
        return {}
    return {s.name: Measured(GenerationMetrics.of(run, s, pairs[0])) for s in run.eval_sets}


def _installed(name: str, needs: Sequence[str]) -> bool:
    """Returns whether the libraries for the metrics of an objective are installed; warns if they are not."""
    missing = [module for module in needs if importlib.util.find_spec(module) is None]
    if missing:
        logging.warning(
            "%s is not installed, so evaluations of %s have its loss alone: pip install 'lmjax[evaluate]'",
            ", ".join(missing), name,
        )  # fmt: skip
    return not missing


@dataclasses.dataclass(frozen=True)
class GenerationMetrics:
    """BLEU and other metrics of the targets that a run generates for the first pairs of one evaluation set.

    The references are the tokenizer's text of the targets, because a store keeps tokens: where the tokenizer normalises
    texts, `lmjax evaluate --task=generation` on the file itself gives the final numbers.

    Attributes:
        run: the run.
        name: of the objective.
        sources: the ids of the sources.
        references: the targets.
    """

    run: Run
    name: str
    sources: Sequence[Sequence[int]]
    references: Sequence[str]

    @classmethod
    def of(cls, run: Run, evaluated: EvalSet, name: str) -> GenerationMetrics:
        """Returns those of an evaluation set."""
        sources, references = [], []
        for store, i in itertools.islice(_stored(evaluated), run.config.evaluation.generate):
            _, middle, end = store.segments(i)
            sources.append(store.tokens(i, 0, middle).tolist())
            references.append(run.tokenizer.decode(store.tokens(i, middle, end - middle).tolist()))
        return cls(run, name, sources, references)

    def __call__(self, params: Any, each_batch: EachBatch) -> dict[str, float]:
        """Returns the metrics, named `OBJECTIVE/METRIC`; each process generates its share of the targets."""
        each_batch()
        evaluation = self.run.config.evaluation
        loaded = trained_model(self.run, on_host(params))
        beams = {"beams": BeamConfig(beams=evaluation.beams)} if evaluation.beams > 1 else {}
        prompts = [loaded.prompts.around(ids) for ids in self.sources]
        config = GenerateConfig(max_new_tokens=evaluation.max_new_tokens, **beams)
        # The model is on one device, and the run's mesh, which is active here, may have more.
        with loaded.on_devices():
            found = over_processes(prompts, lambda own: targets(loaded, own, config) if own else [])
        each_batch()
        values = text_metrics(self.references, found).values
        return {f"{self.name}/{metric}": value for metric, value in values.items()}

    def figures(self) -> dict[str, Any]:
        """Returns no figures."""
        return {}


@dataclasses.dataclass(frozen=True)
class TaskMetrics:
    """The metrics of tasks on one evaluation set: the function `Measured.metrics`.

    Attributes:
        run: the run.
        batch_size: rows that are computed together.
        tasks: the tasks.
        records: the records, as many as the evaluation has rows at most.
        latest: by task, the latest evaluation.
    """

    run: Run
    batch_size: int
    tasks: Sequence[RecordTask]
    records: Sequence[TokenRecord]
    latest: dict[str, Evaluated] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, evaluated: EvalSet, tasks: Sequence[RecordTask]) -> TaskMetrics:
        """Returns those of an evaluation set."""
        limit = evaluated.max_batches * evaluated.batch_size
        records = [TokenRecord.stored(store, i) for store, i in itertools.islice(_stored(evaluated), limit)]
        return cls(run, evaluated.batch_size, tasks, records)

    def __call__(self, params: Any, each_batch: EachBatch) -> dict[str, float]:
        """Returns the metrics, named `TASK/METRIC`."""
        found = {}
        for task in self.tasks:
            predicted = predictions(
                task, self.records, task.form, self.run.model, params,
                mesh=self.run.mesh, batch_size=self.batch_size, each_batch=each_batch,
            )  # fmt: skip
            latest = Evaluated(task, [task.truth(record) for record in self.records], predicted)
            self.latest[task.name] = latest
            found |= {f"{task.name}/{name}": value for name, value in latest.measurement.values.items()}
        return found

    def figures(self) -> dict[str, Any]:
        """Returns the figures of the latest evaluation by name; empty before the first."""
        return {f"{t}_{name}": figure for t, each in self.latest.items() for name, figure in each.figures().items()}


def _stored(evaluated: EvalSet) -> Iterator[tuple[Store, int]]:
    """Yields the documents of an evaluation set, each as its store and its number there."""
    return ((store, i) for store in evaluated.examples.stores.values() for i in range(store.num_documents))


def write_figures(run: Run, sets: Mapping[str, Measured], step: int) -> None:
    """Writes the figures of the last evaluation to the workdir, as PNG files and for TensorBoard.

    Without matplotlib (extra `viz`) there are none.
    """
    if not sets or importlib.util.find_spec("matplotlib") is None:
        return
    from lmjax.analysis.figures import pixels

    made = {f"{name}_{title}": f for name, each in sets.items() for title, f in each.metrics.figures().items()}
    folder = run.workdir / _FOLDER
    try:
        for name, figure in made.items():
            folder.mkdir(exist_ok=True)
            figure.savefig(folder / f"{name}.png", dpi=120)
    except OSError as e:
        # The run is trained and saved: a full disk may not end it with an error.
        logging.warning("%s: cannot write figures (%s); lmjax evaluate --figures makes them too", folder, e.strerror)
    if run.config.logging.tensorboard and made:
        write_images(run.workdir, step, {name: pixels(figure) for name, figure in made.items()})
