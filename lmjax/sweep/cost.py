"""What a run spends in a step, counted on its data before anything is trained; and arms that spend the same."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from lmjax.config import Config
from lmjax.errors import FlagError
from lmjax.model.language_model import abstract_params
from lmjax.model.parameters import count_parameters
from lmjax.runs.build import Run, build
from lmjax.schema import shown
from lmjax.training.stages import Stage

Unit = Literal["steps", "tokens", "targets", "flops", "seconds"]
UNITS: tuple[Unit, ...] = ("steps", "tokens", "targets", "flops", "seconds")

# Rows over which tokens and targets are counted.
_ROWS = 64
# Fields that change neither the rows nor the size of a step.
_FREE = ("seed", "seeds.", "steps", "minutes", "epochs", "optimizer.", "evaluation.", "checkpoint.", "logging.",
         "init_from", "model.dropout.", "model.init")  # fmt: skip


class Span(NamedTuple):
    """What a step of one stage spends.

    Attributes:
        begin: number of updates before the stage.
        end: number of updates when it ends; None: it is the last stage.
        tokens: tokens that a step reads, on average over the first rows.
        targets: weight of the targets of a step, on average over the first rows.
        flops: model FLOPs of a step.
    """

    begin: int
    end: int | None
    tokens: float
    targets: float
    flops: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run spends.

    Attributes:
        steps: the steps of the run; with epochs, those that its rows make.
        parameters: number of parameters.
        spans: the stages.
        sets: the names of its evaluation sets.
    """

    steps: int
    parameters: int
    spans: tuple[Span, ...]
    sets: tuple[str, ...] = ()

    def total(self, unit: Unit, steps: int | None = None) -> float:
        """Returns what the first `steps` steps spend; None: all steps."""
        steps = self.steps if steps is None else steps
        if unit == "steps":
            return steps
        lasting = [max(0, min(steps, span.end or steps) - span.begin) for span in self.spans]
        return sum(number * getattr(span, unit) for number, span in zip(lasting, self.spans, strict=True))

    def steps_for(self, unit: Unit, amount: float) -> int:
        """Returns the number of steps, at least 1, that spend the amount as nearly as whole steps do."""
        least, most = 1, 2
        while self.total(unit, most) < amount:
            most *= 2
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if self.total(unit, middle) <= amount else (least, middle)
        return min(least, most, key=lambda steps: abs(self.total(unit, steps) - amount))


class Costs:
    """Counts what runs spend; runs that differ only in numbers and seeds are counted once."""

    def __init__(self):
        self._known: dict[Any, Cost] = {}

    def __call__(self, config: Config) -> Cost:
        """Returns what a run spends. Its data is tokenised for it, and stays in the cache for the run itself."""
        key = cost_key(config)
        if key not in self._known:
            with tempfile.TemporaryDirectory(prefix="lmjax-plan-") as folder:
                self._known[key] = _counted(build(config, pathlib.Path(folder) / "run"))
        known = self._known[key]
        return known if config.epochs is not None else dataclasses.replace(known, steps=config.steps)


def cost_key(config: Config) -> frozenset[tuple[str, str]]:
    """Returns what is equal for runs whose steps spend the same."""
    epochs = (("epochs", shown(config.epochs)),) if config.epochs is not None else ()
    return frozenset((p, shown(x)) for p, x in config.flat().items() if not p.startswith(_FREE)) | frozenset(epochs)


def _counted(run: Run) -> Cost:
    spans = tuple(Span(stage.begin, stage.end, *_per_step(stage), run.flops_per_step(stage)) for stage in run.stages)
    parameters = count_parameters(abstract_params(run.model.config, run.model.heads))
    return Cost(run.config.steps, parameters, spans, tuple(each.name for each in run.eval_sets))


def _per_step(stage: Stage) -> tuple[float, float]:
    """Returns the tokens and the weight of the targets of a step, on average over the first rows."""
    rows = [stage.example(position)[-1] for position in range(_ROWS)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    tokens = sum(int((x > 0).sum()) for name, x in batch.items() if name.endswith("segment_ids"))
    targets = sum(float(weight) for weight in jax.device_get(stage.task.weights(batch)).values())
    return tokens * stage.batch_size / _ROWS, targets * stage.batch_size / _ROWS


def matched_steps(configs: Sequence[Config], unit: Unit, costs: Costs) -> list[int | None]:
    """Returns the steps with which every run spends what the first one spends; None: as its config says.

    Raises:
        FlagError: the runs do not end after a time, and are to spend the same time.
    """
    if unit == "seconds":
        minutes = {config.minutes for config in configs}
        if len(minutes) > 1 or None in minutes:
            raise FlagError(
                "--match=seconds: each run must end after the same time, by the clock; give --minutes in place of "
                "--steps or --epochs"
            )
        return [None] * len(configs)
    if any(config.minutes is not None for config in configs):
        raise FlagError(f"--match={unit}: the runs end after --minutes; give --steps, or --match=seconds")
    first = costs(configs[0])
    amount = first.total(unit)
    if not amount:
        raise FlagError(f"--match={unit}: the first run has no {unit} to match; take another unit")
    return [costs(config).steps_for(unit, amount) for config in configs]
