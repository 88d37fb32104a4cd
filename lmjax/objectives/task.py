"""A task: all objectives of a run, combined into one source of features and one set of loss sums."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from pydantic import Field

from lmjax.data.mixing import Mixture
from lmjax.data.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.errors import DataError
from lmjax.objectives import r_drop
from lmjax.objectives.base import Batch, Features, Forward, Objective, Rows
from lmjax.objectives.divergences import Measure
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.registry import (
    DEFAULT,
    OBJECTIVES,
    check_family,
    combinations,
    heads,
    objective_types,
    settings,
)
from lmjax.objectives.samples import Sample
from lmjax.objectives.sums import LossSum, Penalties
from lmjax.schema import Schema
from lmjax.streams import random_stream, subseed


class TaskSettings(Schema):
    """The settings shared by all objectives; `TaskConfig` adds those of each objective under its name.

    Attributes:
        penalty_fields: the fields that only `penalties` reads, so that they are traced.
    """

    penalty_fields: ClassVar[tuple[str, ...]] = ("z_loss", "label_smoothing", "r_drop")

    objective: tuple[str, ...] = Field(
        DEFAULT,
        description="names joined by commas: mlm,nsp and mlm,sop share their rows; others are mixed row by row",
    )
    length: int = Field(256, ge=8, description="tokens in a row; in an encoder-decoder, of the encoder's")
    target_length: int | None = Field(
        None,
        ge=8,
        description="tokens in a row of an encoder-decoder's decoder; none: as many as the objective's targets need",
    )
    vocab_chunk: int = Field(0, ge=0, description="positions of a row whose logits exist at the same time; 0: all")
    z_loss: float = Field(0.0, ge=0, description="training adds this times log(softmax's denominator)**2; PaLM's: 1e-4")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a target that training gives to all tokens")
    r_drop: float = Field(
        0.0,
        ge=0,
        description="R-Drop (Liang et al. 2021): two passes a step with different dropout, and this weight on the "
        "divergence of their predictions (theirs: 0.1 to 5); 0: one pass",
    )

    def default_target_length(self) -> int:
        """Returns the tokens in a decoder's row: `target_length`, or else what the longest targets need."""
        if self.target_length is not None:
            return self.target_length
        return max(8, *(OBJECTIVES[n].default_target_length(getattr(self, n), self.length) for n in self.objective))

    def loss_weights(self) -> dict[str, float]:
        """Returns, for each loss sum of the chosen objectives, its weight in the total loss."""
        return {k: w for name in self.objective for k, w in getattr(self, name).loss_weights(name).items()}

    def penalties(self) -> Penalties:
        """Returns what training adds to the cross entropy, as float32 scalars; None where nothing is added."""
        return Penalties(*(np.float32(x) if x else None for x in (getattr(self, name) for name in self.penalty_fields)))


# The registry decides the fields: `config.task.NAME` has the config class from the file of objective NAME.
TaskConfig: type[TaskSettings] = pydantic.create_model(
    "TaskConfig",
    __base__=TaskSettings,
    __module__=__name__,
    __doc__="What is trained on, and the settings of every objective.",
    **{name: (settings(objective), settings(objective)()) for name, objective in OBJECTIVES.items()},
)


def prompt_format(config: TaskConfig, tokenizer: Tokenizer, architecture: str) -> PromptFormat:
    """Returns the prompt format for a model of this task; of several objectives, that of the first one named."""
    name = config.objective[0]
    lengths = (config.length, config.default_target_length(), config.vocab_chunk)
    return OBJECTIVES[name](getattr(config, name), tokenizer, architecture, *lengths).prompt_format()


def _groups(objectives: tuple[Objective, ...]) -> tuple[tuple[Objective, ...], ...]:
    """Returns the objectives in groups; those of one group share their rows."""
    by_name = {o.name: o for o in objectives}
    shared = [c for c in combinations() if set(c) <= by_name.keys()]
    alone = [(name,) for name in by_name if not any(name in c for c in shared)]
    return tuple(tuple(by_name[name] for name in group) for group in sorted([*shared, *alone]))


@dataclasses.dataclass(frozen=True)
class Source:
    """One kind of rows from which examples are made.

    Attributes:
        name: the data set that it reads.
        group: number of the group of objectives that made the rows and transforms them.
        rows: the rows.
        rate: how often they are drawn, relative to other sources.
    """

    name: str
    group: int
    rows: Rows
    rate: float


@dataclasses.dataclass(frozen=True)
class Examples:
    """Maps a row number, counted over all sources, to the features of that row. Picklable; the pipeline calls it.

    If several groups of objectives are mixed, every row has the features of all groups, with zeros for those of other
    groups, and `objective_ids`, the number of its group.

    Attributes:
        task: the objectives.
        sources: the kinds of rows.
        taught: what a teacher has written for a row, by name, given its features; None: there is no such teacher.
    """

    task: Task
    sources: tuple[Source, ...]
    taught: Callable[[Features], Features] | None = None

    def __len__(self) -> int:
        return len(self.mixture)

    @functools.cached_property
    def mixture(self) -> Mixture:
        """Returns the mixture of all sources; raises DataError if one has no rows."""
        for source in self.sources:
            if not len(source.rows):
                raise DataError(f"--data: {source.name!r} gives no row of any objective; give it more text")
        return Mixture(tuple(len(s.rows) for s in self.sources), tuple(s.rate for s in self.sources))

    @property
    def rows(self) -> Rows:
        """Returns the rows of the first source."""
        return self.sources[0].rows

    @property
    def stores(self) -> dict[str, Store]:
        """Returns the store of each data set by its name."""
        return {s.name: s.rows.store for s in self.sources}

    def epochs(self, positions: int, seed: int) -> dict[str, float]:
        """Returns the number of epochs over each data set after the first `positions` rows."""
        epochs = dict.fromkeys(self.stores, 0.0)
        for source, count in zip(self.sources, self.mixture.epochs(positions, seed), strict=True):
            epochs[source.name] += count
        return epochs

    def __call__(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features of one row."""
        source, row = self.mixture.source(index)
        features = self._own(source, row, rng)
        if len(self.task.groups) == 1:
            return features
        whole = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self._shapes.items()}
        for name, array in features.items():
            whole[name][tuple(map(slice, array.shape))] = array
        whole["objective_ids"] = np.int32(self.sources[source].group)
        return whole

    def _own(self, number: int, row: int, rng: np.random.Generator) -> Features:
        source = self.sources[number]
        features = source.rows.features(row, rng)
        for objective in self.task.groups[source.group]:
            features = objective.transform(features, rng)
        return features if self.taught is None else features | self.taught(features)

    @functools.cached_property
    def _shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Returns the shape and dtype of each feature; if groups differ in a shape, the larger size on each axis."""
        shapes = {}
        for group in range(len(self.task.groups)):
            number = next(i for i, s in enumerate(self.sources) if s.group == group)
            for name, array in self._own(number, 0, random_stream(0, "shapes")).items():
                known = shapes.get(name, (array.shape,))[0]
                shapes[name] = (tuple(map(max, known, array.shape)), array.dtype)
        return shapes


@dataclasses.dataclass(frozen=True)
class Task:
    """The objectives of a run.

    Attributes:
        groups: the objectives; those of one group share their rows, and rows of different groups are mixed.
        names: of all objectives, in the order of the flag or config.
    """

    groups: tuple[tuple[Objective, ...], ...]
    names: tuple[str, ...]

    @classmethod
    def build(cls, config: TaskConfig, tokenizer: Tokenizer, architecture: str) -> Task:
        """Returns the task; raises FlagError if the family cannot train it."""
        types = objective_types(config.objective)
        check_family(config.objective, architecture)
        lengths = (config.length, config.default_target_length(), config.vocab_chunk)
        return cls(
            _groups(tuple(t(getattr(config, t.name), tokenizer, architecture, *lengths) for t in types)),
            config.objective,
        )

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Returns all objectives."""
        return tuple(o for group in self.groups for o in group)

    @property
    def heads(self) -> tuple[str, ...]:
        """Returns the heads that the model needs in addition to its vocabulary head."""
        return heads(self.objectives)

    def examples(self, store: Store, seed: int, name: str = "train") -> Examples:
        """Returns the examples that this task makes from one store."""
        return self.mixed_examples({name: (store, 1.0)}, seed)

    def mixed_examples(self, stores: Mapping[str, tuple[Store, float]], seed: int) -> Examples:
        """Returns the examples from several stores, given by name with the rate of each relative to the others."""
        sources = []
        for name, (store, rate) in stores.items():
            for number, group in enumerate(self.groups):
                kinds = group[-1].sources(store, subseed(seed, "rows", name, group[-1].name))
                share = rate * group[-1].config.rate / len(kinds)
                sources += [Source(name, number, rows, share) for rows in kinds]
        return Examples(self, tuple(sources))

    def sample(self, store: Store, room: int) -> Sample | None:
        """Returns the sample of the first objective, in the order of `names`, that has one; None if none has.

        Args:
            store: held-out documents.
            room: the most tokens in a row of the model.
        """
        by_name = {o.name: o for o in self.objectives}
        samples = (by_name[name].sample(store, room) for name in self.names)
        return next((s for s in samples if s is not None), None)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns by name the total weight of each loss sum over the whole batch."""
        return {name: w for o, part in self._parts(batch) for name, w in o.weights(part).items()}

    @property
    def compares_rows(self) -> bool:
        """Returns whether a loss compares rows of the whole batch, so that its `representations` are needed first."""
        return any(o.compares_rows for o in self.objectives)

    def representations(self, forward: Forward, batch: Batch) -> dict[str, Any]:
        """Returns by name what the objectives compare rows by, float32 arrays `[rows, ...]`."""
        return {o.name: o.representations(forward, part) for o, part in self._parts(batch) if o.compares_rows}

    def compared(self, representations: Mapping[str, Any], batch: Batch) -> dict[str, LossSum]:
        """Returns by name the loss sums of the objectives that compare rows, given all their representations."""
        parts = [(o, part) for o, part in self._parts(batch) if o.compares_rows]
        return {k: s for o, part in parts for k, s in o.compared(representations[o.name], part).items()}

    def losses(self, forward: Forward, batch: Batch, *, compare: bool = True) -> dict[str, LossSum]:
        """Returns by name the loss sums of all objectives; without `compare`, not of those that compare rows."""
        sums: dict[str, LossSum] = {}
        predicting = []
        for objective, part in self._parts(batch):
            if objective.compares_rows and not compare:
                continue
            if objective.shares_logits:
                predicting.append((objective, part))
            else:
                sums |= r_drop.losses(objective, forward, part)
        if predicting:
            # `objective_types` checks that all of them predict at the same positions, so the logits of one pass are
            # enough for all.
            first = predicting[0][0]
            weights = jnp.stack([part["weights"] for _, part in predicting], axis=-1)
            together = r_drop.losses(first, forward, {**batch, "weights": weights})[first.name]
            sums |= {o.name: jax.tree.map(lambda x, i=i: x[i], together) for i, (o, _) in enumerate(predicting)}
        return sums

    def divergences(self, forward: Forward, other: Forward, batch: Batch, measure: Measure) -> dict[str, jax.Array]:
        """Returns by name how far apart the predictions of two models are, of the objectives that say it."""
        parts = [(o, part) for o, part in self._parts(batch) if o.diverges()]
        return {k: x for o, part in parts for k, x in o.divergences(forward, other, part, measure).items()}

    def token_targets(self, batch: Batch | Features) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Returns by name the targets and weights of each sum over tokens; `batch` may be on the host or the device."""
        return {name: t for o, part in self._parts(batch) for name, t in o.token_targets(part).items()}

    def _parts(self, batch: Batch | Features) -> list[tuple[Objective, Batch | Features]]:
        """Returns each objective with a copy of the batch in which rows of other groups have weight 0."""
        if len(self.groups) == 1:
            return [(o, batch) for o in self.objectives]

        def own(number: int) -> Batch | Features:
            rows = batch["objective_ids"] == number
            return {
                name: x * rows.reshape(-1, *(1,) * (x.ndim - 1)) if name.endswith("weights") else x
                for name, x in batch.items()
            }

        return [(o, part) for number, group in enumerate(self.groups) for part in [own(number)] for o in group]
