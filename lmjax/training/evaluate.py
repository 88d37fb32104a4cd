"""Evaluation in training: held-out losses, perplexity and bits per byte, and the metrics of tasks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from pydantic import Field

from lmjax.data.pipeline import eval_batches
from lmjax.errors import FlagError
from lmjax.nearest import nearest
from lmjax.objectives.task import Examples
from lmjax.parallel.mesh import to_device
from lmjax.schema import Schema
from lmjax.training.fixed import NOTHING_FIXED, Fixed

PyTree = Any


class EvaluationConfig(Schema):
    """When the run is evaluated, and on how much."""

    every: int = Field(500, ge=0, description="steps between evaluations; 0: only at the start and the end")
    batches: int = Field(16, ge=1, description="the most batches of every evaluation set; they are always the same")
    generate: int = Field(
        0, ge=0, description="pairs of each set whose targets are generated at each evaluation, for BLEU and ROUGE"
    )
    beams: int = Field(1, ge=1, description="beams of this generation; 1: greedy decoding")
    max_new_tokens: int = Field(64, ge=1, description="the most tokens of a generated target")
    metric: str = Field(
        "loss",
        min_length=1,
        description="what early stopping and the best checkpoint follow: a metric of the first set, such as loss or "
        "classification/accuracy, or SET/METRIC; higher or lower is better as the metric is",
    )
    patience: int = Field(
        0, ge=0, description="evaluations without a better value of that metric after which the run stops; 0: never"
    )
    min_delta: float = Field(0.0, ge=0, description="by how much a value must be better to count")


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """A named evaluation set: its examples, and the entropy of its targets as a yardstick.

    Attributes:
        name: its name in the metrics.
        examples: the rows.
        batch_size: rows of a global batch.
        max_batches: at most this many batches are read.
        unigram_entropy: for each loss over tokens, the nats per target of a unigram model fitted to these targets.
        text_bytes: UTF-8 bytes of the texts divided by those of their tokens. It is 1 where the tokens spell the text
            exactly, and not where a tokenizer adds a space before each text or drops characters.
    """

    name: str
    examples: Examples
    batch_size: int
    max_batches: int
    unigram_entropy: dict[str, float]
    text_bytes: float = 1.0

    @classmethod
    def build(
        cls, name: str, examples: Examples, *, batch_size: int, max_batches: int, token_bytes: np.ndarray
    ) -> EvalSet:
        """Returns the set with its yardstick.

        Args:
            name: its name in the metrics.
            examples: the rows.
            batch_size: rows of a global batch.
            max_batches: at most this many batches are read.
            token_bytes: `[vocab]`, UTF-8 bytes of every token.
        """
        unmeasured = cls(name, examples, batch_size, max_batches, {})
        stores = examples.stores.values()
        spelled = sum(store.spelled_bytes(token_bytes) for store in stores)
        return dataclasses.replace(
            unmeasured,
            unigram_entropy=unigram_entropy(unmeasured),
            text_bytes=sum(store.num_bytes for store in stores) / max(1, spelled),
        )

    def batches(self, process_index: int = 0, process_count: int = 1) -> Any:
        """Returns an iterator over this process's part of the batches: each time the same rows, corrupted alike."""
        return eval_batches(
            self.examples,
            self.examples.mixture,
            seed=0,
            batch_size=self.batch_size,
            max_batches=self.max_batches,
            process_index=process_index,
            process_count=process_count,
        )


def unigram_entropy(evaluated: EvalSet) -> dict[str, float]:
    """Returns by loss name the entropy of the set's targets in nats, for the losses over tokens."""
    counts: dict[str, np.ndarray] = {}
    for batch in evaluated.batches():
        for name, (targets, weights) in evaluated.examples.task.token_targets(batch).items():
            found = np.bincount(targets[weights > 0])
            short, long = sorted((counts.get(name, found[:0]), found), key=len)
            counts[name] = long + np.pad(short, (0, len(long) - len(short)))
    shares = {name: count[count > 0] / count.sum() for name, count in counts.items() if count.sum()}
    return {name: float(-(p * np.log(p)).sum()) for name, p in shares.items()}


EachBatch = Callable[[], object]
# Metrics of every run that are better when they are lower.
FALLING = ("loss", "perplexity", "bits_per_byte")


@dataclasses.dataclass(frozen=True)
class Followed:
    """The metric of an evaluation that early stopping and the best checkpoint follow.

    Attributes:
        name: its name in metrics.jsonl.
        falling: whether lower values are better.
    """

    name: str
    falling: bool = True

    def cost(self, value: float | None) -> float:
        """Returns a number that is lower if a value of the metric is better; metrics.jsonl has null for NaN."""
        value = math.nan if value is None else value
        return value if self.falling else -value

    def read(self, metrics: Mapping[str, float]) -> float:
        """Returns the cost of an evaluation.

        Raises:
            FlagError: the evaluation has no such metric.
        """
        if self.name not in metrics:
            name, known = self.name.removeprefix("eval/"), [x.removeprefix("eval/") for x in metrics]
            hint = nearest(name, known)
            raise FlagError(
                f"--config.evaluation.metric: the evaluation has no {name!r}; {hint}{' ' if hint else ''}it has "
                f"{', '.join(known[:20])}{' ...' if known[20:] else ''}"
            )
        return self.cost(metrics[self.name])


def followed(metric: str, sets: Sequence[str], falling: Collection[str]) -> Followed:
    """Returns the metric `METRIC` of the first set, or `SET/METRIC` of another one.

    Args:
        metric: its name.
        sets: the names of the evaluation sets, in order.
        falling: the last part of the names of those that are better when they are lower, besides `FALLING`.
    """
    name = f"eval/{metric}" if metric.partition("/")[0] in sets else f"eval/{sets[0]}/{metric}"
    return Followed(name, name.rpartition("/")[2] in {*FALLING, *falling})


class Measured(NamedTuple):
    """Computes the metrics of an evaluation set that are no sums over batches, such as F1 or BLEU.

    Attributes:
        metrics: from parameters, and a function that is called before each batch, to metrics by name.
        falling: the last part of the names of those that are better when they are lower.
    """

    metrics: Callable[[PyTree, EachBatch], dict[str, float]]
    falling: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates parameters on every named set.

    Attributes:
        sets: the evaluation sets.
        step: the jitted evaluation step.
        mesh: the mesh for the batches.
        token_bytes: `[vocab]`, UTF-8 bytes of every token.
        loss_weights: weight of every objective in the total loss.
        measured: by the name of a set, what is measured on it besides the losses.
        fixed: the arrays that are not trained, which the step reads too.
    """

    sets: tuple[EvalSet, ...]
    step: Callable[..., Any]
    mesh: jax.sharding.Mesh
    token_bytes: jax.Array
    loss_weights: dict[str, float]
    measured: Mapping[str, Measured] = dataclasses.field(default_factory=dict)
    fixed: Fixed = NOTHING_FIXED

    def followed(self, metric: str) -> Followed:
        """Returns the metric `METRIC` of the first set, or `SET/METRIC` of another one."""
        falling = [part for each in self.measured.values() for part in each.falling]
        return followed(metric, [s.name for s in self.sets], falling)

    def __call__(self, params: PyTree, each_batch: EachBatch = lambda: None) -> dict[str, float]:
        """Returns metrics named `eval/SET/loss`, `.../perplexity`, `.../bits_per_byte`, `.../accuracy` and so on.

        Args:
            params: the parameters that are trained.
            each_batch: called before each batch.
        """
        return {k: v for s in self.sets for k, v in self._evaluate(s, params, each_batch).items()}

    def compile(self, params: PyTree) -> None:
        """Evaluates one batch and drops the result, so that later evaluations include no time of compilation."""
        with self.sets[0].batches(jax.process_index(), jax.process_count()) as batches:
            jax.block_until_ready(self._step(params, next(batches)))

    def _step(self, params: PyTree, host_batch: Mapping[str, np.ndarray]) -> PyTree:
        return self.step(params, to_device(host_batch, self.mesh), self.token_bytes, self.fixed)

    def _evaluate(self, evaluated: EvalSet, params: PyTree, each_batch: EachBatch) -> dict[str, float]:
        sums = self.sums(evaluated, params, each_batch)
        return self.losses(evaluated, sums) | self.measure(evaluated, params, each_batch)

    def sums(self, evaluated: EvalSet, params: PyTree, each_batch: EachBatch = lambda: None) -> PyTree:
        """Returns what the evaluation step returns, added over the batches of a set in float64.

        The arrays have the shape that the step gives them: scalars, or `[members]` for a population.
        """
        totals: PyTree = None
        for host_batch in evaluated.batches(jax.process_index(), jax.process_count()):
            each_batch()
            found = jax.device_get(self._step(params, host_batch))
            # float32 loses precision in sums over a whole set.
            found = jax.tree.map(np.float64, found)
            totals = found if totals is None else jax.tree.map(np.add, totals, found)
        return totals

    def measure(self, evaluated: EvalSet, params: PyTree, each_batch: EachBatch = lambda: None) -> dict[str, float]:
        """Returns the metrics of a set that are no sums over batches, named `eval/SET/...`."""
        if evaluated.name not in self.measured:
            return {}
        found = self.measured[evaluated.name].metrics(self.fixed.whole(params), each_batch)
        return {f"eval/{evaluated.name}/{name}": value for name, value in found.items()}

    def losses(self, evaluated: EvalSet, sums: PyTree) -> dict[str, float]:
        """Returns the losses of a set and what follows from them, named `eval/SET/...`.

        Args:
            evaluated: the set.
            sums: what `sums` returns, as scalars.
        """
        losses, num_bytes = jax.tree.map(float, sums)
        num_bytes = {name: count * evaluated.text_bytes for name, count in num_bytes.items()}
        return self._named(f"eval/{evaluated.name}", losses, num_bytes)

    def _named(self, prefix: str, losses: dict[str, Any], num_bytes: dict[str, float]) -> dict[str, float]:
        metrics = {f"{prefix}/loss": 0.0}
        for name, s in losses.items():
            loss = s.loss / max(s.weight, 1.0)
            metrics[f"{prefix}/loss"] += self.loss_weights[name] * loss
            metrics[f"{prefix}/{name}/loss"] = loss
            if s.correct is not None:
                metrics[f"{prefix}/{name}/accuracy"] = s.correct / max(s.weight, 1.0)
            for each, mean in s.means.items():
                metrics[f"{prefix}/{name}/{each}"] = mean.total / max(mean.weight, 1.0)
            if name in num_bytes:
                metrics[f"{prefix}/{name}/perplexity"] = math.exp(min(loss, 700.0))
                metrics[f"{prefix}/{name}/bits_per_byte"] = s.loss / math.log(2) / max(num_bytes[name], 1.0)
        return metrics
