"""Greedy decoding and sampling in which each row has settings of its own, for requests that share a running batch.

A row gets the token that `sampling.Sampling` would give it, and the filters that no row uses are skipped. All settings
are traced, so that one program serves every request.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.processors import Processors, apply, penalise, unending
from lmjax.inference.generate.sampling import draw, draw_keys, likeliest, nats_below, typical, within
from lmjax.inference.generate.strategy import NOTHING, Choice, ChoiceInput, put_requests

PyTree = Any
# The most ids that end the texts of a row, and the most likeliest tokens that are reported for a chosen one.
MOST_STOPS = 16
MOST_ALTERNATIVES = 20


@flax.struct.dataclass
class RowValues:
    """The settings of each row as arrays; every array has a row for each request.

    Attributes:
        temperature: float32 `[rows]`; 0: greedy.
        top_k: int32 `[rows]`; 0: off.
        top_p: float32 `[rows]`; 1: off.
        min_p: float32 `[rows]`; 0: off.
        typical_p: float32 `[rows]`; 1: off.
        repetition_penalty: float32 `[rows]`; 1: off.
        presence_penalty: float32 `[rows]`, subtracted from the score of each id that was generated; 0: off.
        frequency_penalty: float32 `[rows]`, subtracted from it as often as the id was generated; 0: off.
        min_new_tokens: int32 `[rows]`.
        stop: int32 `[rows, MOST_STOPS]`: ids that end a text; -1 is none.
        bias: float32 `[rows, vocab]`, added to the logits; minus infinity bans an id.
        alternatives: int32 `[rows]`: the likeliest tokens that are reported beside the chosen one.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    typical_p: jax.Array
    repetition_penalty: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    min_new_tokens: jax.Array
    stop: jax.Array
    bias: jax.Array
    alternatives: jax.Array

    @classmethod
    def of(
        cls,
        config: GenerateConfig,
        vocab: int,
        *,
        stop: Sequence[int],
        never: Sequence[int] = (),
        bias: Mapping[int, float] | None = None,
        presence: float = 0.0,
        frequency: float = 0.0,
        alternatives: int = 0,
    ) -> Self:
        """Returns the values of one request, as NumPy arrays of one row.

        Args:
            config: the settings; those of beams, and repeated n-grams, are not read.
            vocab: number of columns of the logits.
            stop: ids that end the text, at most MOST_STOPS.
            never: ids that are never generated, besides those that the config bans.
            bias: what is added to the logits of ids.
            presence: the penalty of ids that were generated.
            frequency: the penalty of ids for each time that they were generated.
            alternatives: likeliest tokens that are reported beside a chosen one.
        """
        sampling, processors = config.sampling, config.processors
        added = np.zeros((1, vocab), np.float32)
        for i, value in (bias or {}).items():
            added[0, i] = value
        added[0, [*never, *processors.banned]] = -np.inf
        numbers = {
            "temperature": np.float32(sampling.temperature),
            "top_k": np.int32(sampling.top_k or 0),
            "top_p": np.float32(sampling.top_p or 1),
            "min_p": np.float32(sampling.min_p or 0),
            "typical_p": np.float32(sampling.typical_p or 1),
            "repetition_penalty": np.float32(processors.repetition_penalty or 1),
            "presence_penalty": np.float32(presence),
            "frequency_penalty": np.float32(frequency),
            "min_new_tokens": np.int32(processors.min_new_tokens),
            "alternatives": np.int32(alternatives),
        }
        stops = np.full((1, MOST_STOPS), -1, np.int32)
        stops[0, : len(stop)] = list(stop)
        return cls(stop=stops, bias=added, **{name: x[None] for name, x in numbers.items()})


@flax.struct.dataclass
class Chosen:
    """The tokens that were chosen last.

    Attributes:
        ids: int32 `[rows]`; NOTHING where no id was allowed.
        log_probs: float32 `[rows]`, those of the model, before penalties, temperature and filters.
        likeliest: int32 `[rows, MOST_ALTERNATIVES]`: the likeliest ids, if a row reports them.
        likeliest_log_probs: float32 `[rows, MOST_ALTERNATIVES]`: of these.
    """

    ids: jax.Array
    log_probs: jax.Array
    likeliest: jax.Array
    likeliest_log_probs: jax.Array


@flax.struct.dataclass
class RowState:
    """The state between two tokens.

    Attributes:
        keys: random keys `[requests]`, made from the seeds.
        done: bool `[requests]`: the text has ended.
        scores: float32 `[requests]`, as in `SamplingState`.
        values: the settings of each row.
        chosen: the last tokens.
        processors: what the model itself bans or forces, for all rows.
    """

    keys: jax.Array
    done: jax.Array
    scores: jax.Array
    values: RowValues
    chosen: Chosen
    processors: Processors


@dataclasses.dataclass(frozen=True)
class RowSampling:
    """The strategy of rows with settings of their own; all of its instances for a model share a program.

    Attributes:
        values: the settings of the requests that it starts.
        processors: what the model itself bans or forces.
        form: the tree structure of the processors, which is static.
    """

    values: RowValues | None = dataclasses.field(default=None, compare=False)
    processors: Processors = dataclasses.field(default=Processors(), compare=False)
    form: PyTree = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "form", jax.tree.structure(self.processors))

    @property
    def rows(self) -> int:
        """Returns the rows of a request."""
        return 1

    def start(self, seeds: Sequence[int], room: int) -> RowState:
        """Returns the state before the first choice, for as many requests as `values` has."""
        rows = len(seeds)
        likeliest = np.zeros((rows, MOST_ALTERNATIVES))
        return RowState(
            keys=draw_keys(seeds),
            done=np.zeros(rows, bool),
            scores=np.zeros(rows, np.float32),
            values=self.values,
            chosen=Chosen(
                np.zeros(rows, np.int32),
                np.zeros(rows, np.float32),
                likeliest.astype(np.int32),
                likeliest.astype(np.float32),
            ),
            processors=self.processors,
        )

    def choose(self, inputs: ChoiceInput, state: RowState) -> Choice:
        """Returns the next token of every row; a row in which no id is allowed gets NOTHING and ends."""
        values, own = state.values, jax.nn.log_softmax(inputs.logits, axis=-1)
        scores = apply(inputs.logits + values.bias, inputs, state.processors)
        scores = _changed(scores, inputs, values)
        greedy = jnp.argmax(scores, axis=-1).astype(jnp.int32)

        def drawn() -> jax.Array:
            keys = jax.vmap(jax.random.fold_in)(state.keys, inputs.count)
            return jnp.where(values.temperature > 0, draw(_weights(scores, values), keys), greedy)

        ids = jax.lax.cond(jnp.any((values.temperature > 0) & ~state.done), drawn, lambda: greedy)
        log_probs = jnp.take_along_axis(own, ids[:, None], axis=1)[:, 0]
        stuck = jnp.isneginf(jnp.take_along_axis(scores, ids[:, None], axis=1)[:, 0])
        stops = jnp.any(ids[:, None] == values.stop, axis=1) | jnp.any(ids[:, None] == inputs.stop[None], axis=1)
        ended = stuck | stops | (inputs.count + 1 >= inputs.limit)
        ids = jnp.where(state.done, 0, jnp.where(stuck, NOTHING, ids)).astype(jnp.int32)
        gained = jnp.where(state.done | stuck, 0, log_probs)
        chosen = Chosen(ids, log_probs, *_likeliest(own, state))
        return Choice(ids, None, state.replace(done=state.done | ended, scores=state.scores + gained, chosen=chosen))

    def put(self, state: RowState, other: RowState, request: jax.Array) -> RowState:
        """Returns the state with its requests from int32 `request` on replaced by those of `other`."""
        return put_requests(state, other, request, ("keys", "done", "scores", "values", "chosen"))

    def finished(self, state: RowState) -> jax.Array:
        """Returns bool `[requests]`: whether the text has ended."""
        return state.done


def _changed(scores: jax.Array, inputs: ChoiceInput, values: RowValues) -> jax.Array:
    """Returns the scores after the penalties of each row."""

    def repetition(x: jax.Array) -> jax.Array:
        return penalise(x, inputs, values.repetition_penalty[:, None])

    def generated(x: jax.Array) -> jax.Array:
        places = jnp.arange(inputs.tokens.shape[1])[None]
        end = jnp.max(jnp.where(inputs.written, 1 + places, 0), axis=1, keepdims=True)
        mine = inputs.written & (places >= end - inputs.count[:, None])
        rows, ids = jnp.arange(len(x))[:, None], jnp.where(mine, inputs.tokens, x.shape[-1])
        counts = jnp.zeros_like(x).at[rows, ids].add(1, mode="drop")
        presence = values.presence_penalty[:, None] * (counts > 0)
        return x - presence - values.frequency_penalty[:, None] * counts

    scores = _where(values.repetition_penalty != 1, repetition, scores)
    scores = _where((values.presence_penalty != 0) | (values.frequency_penalty != 0), generated, scores)
    early = inputs.count < values.min_new_tokens
    stop = jnp.concatenate([values.stop, jnp.broadcast_to(inputs.stop[None], (len(scores), len(inputs.stop)))], axis=1)
    return _where(early, lambda x: unending(x, stop, early), scores)


def _weights(scores: jax.Array, values: RowValues) -> jax.Array:
    """Returns what `sampling.weights` returns for the values of each row, at a temperature of 1 where it is 0."""
    gaps = nats_below(scores, jnp.where(values.temperature > 0, values.temperature, 1)[:, None])
    kept = jnp.exp(-gaps)
    kept = _where(values.top_k > 0, lambda x: jnp.where(within(gaps, values.top_k), x, 0), kept)
    kept = _where(values.top_p < 1, lambda x: likeliest(gaps, x, values.top_p), kept)
    kept = _where(values.min_p > 0, lambda x: jnp.where(x >= values.min_p[:, None], x, 0), kept)
    return _where(values.typical_p < 1, lambda x: typical(gaps, x, values.typical_p), kept)


def _where(on: jax.Array, change: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Returns `change(x)` in the rows where `on`, bool `[rows]`, is True; it is not computed if there are none."""
    return jax.lax.cond(jnp.any(on), lambda: jnp.where(on[:, None], change(x), x), lambda: x)


def _likeliest(log_probs: jax.Array, state: RowState) -> tuple[jax.Array, jax.Array]:
    """Returns the likeliest ids of each row and their log-probabilities, if a row reports them."""
    count = min(MOST_ALTERNATIVES, log_probs.shape[-1])

    def find() -> tuple[jax.Array, jax.Array]:
        found, ids = jax.lax.top_k(log_probs, count)
        room = ((0, 0), (0, MOST_ALTERNATIVES - count))
        return jnp.pad(ids.astype(jnp.int32), room), jnp.pad(found, room, constant_values=-jnp.inf)

    wanted = jnp.any((state.values.alternatives > 0) & ~state.done)
    return jax.lax.cond(wanted, find, lambda: (state.chosen.likeliest, state.chosen.likeliest_log_probs))
