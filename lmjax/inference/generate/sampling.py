"""Greedy decoding and sampling: filters on the distribution of the next token, and a draw from what they keep.

The filters and their order are those of transformers 5: temperature, top-k, top-p, min-p, typical. Ids that tie at a
filter's threshold are all kept, so that the result does not depend on the order of equal scores. transformers does the
same except in top-p, where it keeps only those tied ids that its sort puts first.

No filter sorts the vocabulary: on a CPU, sorting 50,257 scores takes longer than a layer of many models. Each filter
keeps the ids up to a threshold of some order instead, and bisection over the range of non-negative floats finds the
threshold in 31 steps, one for each of their 31 bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from lmjax.inference.generate.processors import Processors, apply
from lmjax.inference.generate.strategy import NOTHING, Choice, ChoiceInput, put_requests
from lmjax.schema import Schema
from lmjax.streams import prng_keys

PyTree = Any
FILTERS = ("top_k", "top_p", "min_p", "typical_p")
COLDEST = 1e-6
# Up to this k, `jax.lax.top_k` is faster than bisection for the k-th largest score.
MOST_CANDIDATES = 512


class SamplingConfig(Schema):
    """Temperature and filters of sampling; the default is greedy decoding."""

    temperature: float = Field(0.0, ge=0, le=1e6, description="Divides the logits; 0: the likeliest id, greedily.")
    top_k: int | None = Field(None, ge=1, description="Draw among this many of the likeliest ids.")
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Draw among the smallest set of likeliest ids with this total probability (Holtzman et al. 2019,"
        " arXiv:1904.09751, section 3.1).",
    )
    min_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Draw among ids whose probability is at least this share of the largest one (Nguyen et al. 2024,"
        " arXiv:2407.01082, section 3).",
    )
    typical_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Draw among the ids with this total probability whose surprise is nearest to its mean (Meister et"
        " al. 2022, arXiv:2202.00666, section 4).",
    )

    @model_validator(mode="after")
    def _has_something_to_filter(self) -> Self:
        """Raises ValueError, with the field, its value and the remedy, for settings without effect or result."""
        if 0 < self.temperature < COLDEST:
            raise ValueError(
                f"temperature={self.temperature} is too small to divide by; set 0, which takes the likeliest id, or"
                f" {COLDEST} and more"
            )
        for name in FILTERS:
            if self.temperature == 0 and getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no effect on greedy decoding (temperature=0); set temperature"
                    f" above 0, or {name} to none"
                )
        return self


@flax.struct.dataclass
class FilterValues:
    """The values of a SamplingConfig as traced arrays, so that a new value does not recompile; None: off.

    Attributes:
        temperature: float32 scalar; None: greedy.
        top_k: int32 scalar.
        top_p: float32 scalar.
        min_p: float32 scalar.
        typical_p: float32 scalar.
        candidates: the k of `jax.lax.top_k` with which the `top_k`-th score is found, a power of two; 0: bisection.
    """

    temperature: jax.Array | None = None
    top_k: jax.Array | None = None
    top_p: jax.Array | None = None
    min_p: jax.Array | None = None
    typical_p: jax.Array | None = None
    candidates: int = flax.struct.field(pytree_node=False, default=0)

    @classmethod
    def of(cls, config: SamplingConfig) -> Self:
        """Returns the values of a config, as NumPy scalars; top_p=1 and typical_p=1 filter nothing and are off."""
        k = config.top_k
        candidates = 0 if k is None or k > MOST_CANDIDATES else max(64, 2 ** math.ceil(math.log2(k)))
        mass = {n: getattr(config, n) for n in ("top_p", "typical_p")}
        return cls(
            temperature=np.float32(config.temperature) if config.temperature else None,
            top_k=None if k is None else np.int32(k),
            min_p=None if config.min_p is None else np.float32(config.min_p),
            candidates=candidates,
            **{n: None if p is None or p == 1 else np.float32(p) for n, p in mass.items()},
        )


@flax.struct.dataclass
class SamplingState:
    """The state of sampling between two tokens.

    Attributes:
        keys: random keys `[requests]`, made from the seeds; None: greedy.
        done: bool `[requests]`: the text has ended.
        scores: float32 `[requests]`, the sum of the log-probabilities of the chosen tokens, a stop id included. They
            are the model's own: of `ChoiceInput.logits`, before penalties, temperature and filters.
        numbers: temperature and filters.
        processors: penalties and bans.
    """

    keys: jax.Array | None
    done: jax.Array
    scores: jax.Array
    numbers: FilterValues
    processors: Processors


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The strategy of greedy decoding and of sampling.

    Two strategies are equal, and share a compiled program, if the same filters and processors are on. Their values are
    part of the state, which is traced.

    Attributes:
        numbers: temperature and filters.
        processors: penalties and bans.
        form: their tree structure, which is static: what is on.
    """

    numbers: FilterValues = dataclasses.field(default=FilterValues(), compare=False)
    processors: Processors = dataclasses.field(default=Processors(), compare=False)
    form: PyTree = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "form", jax.tree.structure((self.numbers, self.processors)))

    @classmethod
    def of(cls, config: SamplingConfig, processors: Processors | None = None) -> Self:
        """Returns the strategy of a config."""
        return cls(FilterValues.of(config), processors or Processors())

    @property
    def rows(self) -> int:
        """Returns the rows of a request."""
        return 1

    def start(self, seeds: Sequence[int], room: int) -> SamplingState:
        """Returns the state before the first choice; called outside of jit, so that its values become traced arrays."""
        # NumPy arrays: each small program that would make zeros on the device delays the first token.
        numbers, processors = self.numbers, self.processors
        return SamplingState(
            keys=None if numbers.temperature is None else draw_keys(seeds),
            done=np.zeros(len(seeds), bool),
            scores=np.zeros(len(seeds), np.float32),
            numbers=numbers,
            processors=processors,
        )

    def choose(self, inputs: ChoiceInput, state: SamplingState) -> Choice:
        """Returns the next token of every row.

        A row ends with a stop id or when the limit is reached; afterwards it gets the first stop id (0 if there is
        none), which is not part of the text. A draw depends on the row's seed, scores and number of generated tokens,
        not on other rows. A row in which no id is allowed gets NOTHING and ends.
        """
        scores = apply(inputs.logits, inputs, state.processors)
        if state.keys is None:
            ids = jnp.argmax(scores, axis=-1)
        else:
            keys = jax.vmap(jax.random.fold_in)(state.keys, inputs.count)
            ids = draw(weights(scores, state.numbers), keys)
        chosen = jnp.take_along_axis(inputs.logits, ids[:, None], axis=1)[:, 0]
        gained = chosen - jax.nn.logsumexp(inputs.logits, axis=-1)
        # The chosen id is banned only if every id of the row is banned.
        stuck = jnp.isneginf(jnp.take_along_axis(scores, ids[:, None], axis=1)[:, 0])
        ended = stuck | jnp.any(ids[:, None] == inputs.stop[None], axis=1) | (inputs.count + 1 >= inputs.limit)
        filler = jnp.maximum(inputs.stop[0], 0) if len(inputs.stop) else 0
        ids = jnp.where(state.done, filler, jnp.where(stuck, NOTHING, ids)).astype(jnp.int32)
        scores = state.scores + jnp.where(state.done | stuck, 0, gained)
        return Choice(ids, None, state.replace(done=state.done | ended, scores=scores))

    def put(self, state: SamplingState, other: SamplingState, request: jax.Array) -> SamplingState:
        """Returns the state with its requests from int32 `request` on replaced by those of `other`."""
        return put_requests(state, other, request, ("keys", "done", "scores"))

    def finished(self, state: SamplingState) -> jax.Array:
        """Returns bool `[requests]`: whether the text has ended."""
        return state.done


def draw_keys(seeds: Sequence[int]) -> jax.Array:
    """Returns the random keys `[seeds]` from which `draw` takes its numbers."""
    return prng_keys(seeds, "sampling")


def probabilities(logits: jax.Array, numbers: FilterValues) -> jax.Array:
    """Returns float32 `[rows, vocab]`: the distribution that a token is drawn from; greedy: one id has probability 1.

    Args:
        logits: float32 `[rows, vocab]`, after the processors; minus infinity where an id is not allowed.
        numbers: temperature and filters.
    """
    if numbers.temperature is None:
        best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=jnp.float32)
        return jnp.where(jnp.isneginf(logits), 0, best)
    kept = weights(logits, numbers)
    # In a row without an allowed id the sum is 0: the least float keeps 0 / 0 from becoming NaN.
    return kept / jnp.maximum(jnp.sum(kept, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)


def weights(logits: jax.Array, numbers: FilterValues) -> jax.Array:
    """Returns float32 `[rows, vocab]`: probabilities before normalisation; 0 where a filter drops an id.

    Args:
        logits: as for `probabilities`.
        numbers: temperature, which must not be None, and filters.
    """
    gaps = nats_below(logits, numbers.temperature)
    kept = jnp.exp(-gaps)
    if numbers.top_k is not None:
        kept = jnp.where(_largest(logits, gaps, numbers), kept, 0)
    if numbers.top_p is not None:
        kept = likeliest(gaps, kept, numbers.top_p)
    if numbers.min_p is not None:
        kept = jnp.where(kept >= numbers.min_p, kept, 0)
    if numbers.typical_p is not None:
        kept = typical(gaps, kept, numbers.typical_p)
    return kept


def nats_below(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Returns float32 `[rows, vocab]`: how far each id is below the likeliest one, whose weight exp(-0) is 1.

    Args:
        logits: as for `probabilities`.
        temperature: float32 scalar, or `[rows, 1]`.
    """
    best = jnp.max(logits, axis=-1, keepdims=True)
    # Clipping `best` avoids infinity - infinity = NaN.
    return (jnp.maximum(best, jnp.finfo(jnp.float32).min) - logits) / temperature


def likeliest(gaps: jax.Array, kept: jax.Array, share: jax.Array) -> jax.Array:
    """Returns `kept` with 0 for the ids after the likeliest ones that hold a share, a scalar or `[rows]`, of it."""
    return _first(gaps, kept, share * jnp.sum(kept, axis=-1))


def typical(gaps: jax.Array, kept: jax.Array, share: jax.Array) -> jax.Array:
    """Returns `kept` with 0 for the ids after those that hold a share of it and whose surprise is nearest its mean."""
    total = jnp.sum(kept, axis=-1)
    # The surprise -log p is the gap plus a constant of the row, which cancels in its distance from the mean.
    mean = jnp.sum(jnp.where(kept > 0, kept * gaps, 0), axis=-1) / total
    away = jnp.where(kept > 0, jnp.abs(gaps - mean[:, None]), jnp.inf)
    return _first(away, kept, share * total)


def within(gaps: jax.Array, k: jax.Array) -> jax.Array:
    """Returns bool `[rows, vocab]`: whether fewer than `k` ids, a scalar or int32 `[rows]`, are likelier."""
    return _first(gaps, jnp.ones_like(gaps), jnp.broadcast_to(k, len(gaps)).astype(jnp.float32)) > 0


def _largest(logits: jax.Array, gaps: jax.Array, numbers: FilterValues) -> jax.Array:
    """Returns bool `[rows, vocab]`: whether a logit is at least the k-th largest of its row."""
    if numbers.candidates == 0:
        return within(gaps, numbers.top_k)
    largest = jax.lax.top_k(logits, min(numbers.candidates, logits.shape[-1]))[0]
    last = jnp.minimum(numbers.top_k, largest.shape[-1]) - 1
    return logits >= jax.lax.dynamic_slice_in_dim(largest, last, 1, axis=1)


def _first(order: jax.Array, kept: jax.Array, mass: jax.Array) -> jax.Array:
    """Returns `kept` with 0 for the ids after those first ones, by `order`, whose weights add up to `mass`.

    An id stays if the weights of all ids strictly before it add up to less than `mass`: the first id always stays, and
    ids with equal `order` are treated alike.

    Args:
        order: float32 `[rows, vocab]`, not negative; the smallest is first.
        kept: float32 `[rows, vocab]`, the weights.
        mass: float32 `[rows]`.
    """
    # Non-negative floats have the same order as their bit patterns, so bisection runs over integers. Inside,
    # floats are compared, which is faster.
    infinity = int(np.float32(np.inf).view(np.int32))

    def number(bits: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(bits, jnp.float32)[:, None]

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        less = jnp.sum(jnp.where(order < number(middle), kept, 0), axis=-1) < mass
        return jnp.where(less, middle, low), jnp.where(less, high, middle)

    # Invariant: the ids before `low` weigh less than `mass`; those before `high` do not, or `high` is past infinity.
    bounds = jnp.zeros(len(order), jnp.int32), jnp.full(len(order), infinity + 1, jnp.int32)
    low, _ = jax.lax.fori_loop(0, 31, halve, bounds)
    return jnp.where(order <= number(low), kept, 0)


def draw(kept: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns int32 `[rows]`: a random id of each row with probability proportional to its weight, never of weight 0.

    Two uniform numbers are drawn: one picks a block of ids, the other an id of the block, each with float32's precision
    of 2**-23. On a CPU this is ten times as fast as a Gumbel number for every id, and more precise for rare ids than
    one cumulative sum over the vocabulary.

    Args:
        kept: float32 `[rows, vocab]`, weights that are not negative; rows need not add up to one.
        keys: random keys `[rows]`.
    """
    rows, vocab = kept.shape
    width = math.isqrt(vocab - 1) + 1
    blocks = -(-vocab // width)
    kept = jnp.pad(kept, ((0, 0), (0, blocks * width - vocab))).reshape(rows, blocks, width)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    block = pick(jnp.sum(kept, axis=-1), uniform[:, 0])
    inside = jnp.take_along_axis(kept, block[:, None, None], axis=1)[:, 0]
    return (block * width + pick(inside, uniform[:, 1])).astype(jnp.int32)


def pick(parts: jax.Array, uniform: jax.Array) -> jax.Array:
    """Returns `[rows]`: the index in `parts` `[rows, n]` at which the cumulative share first exceeds `uniform`."""
    # Rounding may raise the cumulative sum at an index whose part is 0: minus infinity excludes such indices.
    sums = jnp.where(parts > 0, jnp.cumsum(parts, axis=-1), -jnp.inf)
    return jnp.argmax(sums > (uniform * jnp.max(sums, axis=-1))[:, None], axis=-1)
