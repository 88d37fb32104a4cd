"""The decode loop of all families and strategies: it reads the prompts, then chooses and reads one token at a time.

The arrays of the loop have fixed shapes. Prompts are right-aligned with padding before them, so that the next token of
every row goes into the same slot of the cache, which is updated in place. All prompts that fit the same shapes share a
compiled program, whatever their lengths, seeds, temperatures and limits.

Requests can join a running batch (`join`): the columns, slots, counts and limits of its rows may then differ. A text
that has ended does not change while others continue.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.inference.generate.strategy import ChoiceInput, Strategy
from lmjax.model.cache import Cache
from lmjax.model.key_value import CacheType
from lmjax.model.language_model import LanguageModel

PyTree = Any
Fields = dict[str, jax.Array]


@flax.struct.dataclass
class Decoding:
    """The state of a batch of texts during generation.

    Attributes:
        cache: the keys and values of all tokens but the last chosen one, which is read next.
        state: of the strategy.
        tokens: int32 `[rows, room]`: the prompt, then the generated tokens.
        written: bool `[rows, room]`: where `tokens` holds a token.
        positions: int32 `[rows]`: the position of the last chosen token.
        column: int32 `[rows]`: the next column of `tokens` to be written.
        count: int32 `[rows]`: tokens generated so far, forced ones included.
        limit: int32 `[rows]`: the most tokens that may be generated.
        stop: int32 `[stops]`: ids that end a text; -1 is none.
    """

    cache: Cache
    state: PyTree
    tokens: jax.Array
    written: jax.Array
    positions: jax.Array
    column: jax.Array
    count: jax.Array
    limit: jax.Array
    stop: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "capacity", "kind", "slack"))
def prefill(
    params: PyTree, fields: Fields, *, model: LanguageModel, capacity: int, kind: CacheType = "compute", slack: int = 0
) -> tuple[jax.Array, Cache]:
    """Returns float32 logits `[rows, vocab]` after the last column, and a new cache that holds all columns.

    Args:
        params: of the model.
        fields: of a batch, as `LanguageModel.extend` takes them; for an encoder-decoder also those of its encoder.
        model: with unrolled layers.
        capacity: slots of the cache.
        kind: of the cache.
        slack: slots that `Cache.rewind` may free again.
    """
    rows = next(iter(fields.values())).shape[0]
    memory_length = fields["encoder_tokens"].shape[1] if "encoder_tokens" in fields else 0
    cache = model.empty_cache(rows, capacity, memory_length=memory_length, kind=kind, slack=slack)
    return _read(model, params, fields, cache)


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("cache",))
def extend(params: PyTree, fields: Fields, cache: Cache, *, model: LanguageModel) -> tuple[jax.Array, Cache]:
    """Returns float32 logits `[rows, vocab]` after the last column, and the cache, which is updated in place."""
    return _read(model, params, fields, cache)


@functools.partial(jax.jit, static_argnames=("strategy",))
def begin(
    logits: jax.Array,
    cache: Cache,
    state: PyTree,
    prompts: dict[str, jax.Array],
    allowed: jax.Array | None,
    *,
    strategy: Strategy,
) -> Decoding:
    """Returns a batch of texts with their first token chosen.

    Args:
        logits: float32 `[requests, vocab]`, after the prompts.
        cache: holds the prompts.
        state: the initial state of the strategy.
        prompts: `tokens`, `written`, `column`, `count`, `limit` and `stop` of `Decoding`, a row for each request.
        allowed: bool `[requests, vocab]`: the ids that may be chosen; None: all.
        strategy: chooses the tokens.
    """
    rows = strategy.rows
    of_rows = {name: jnp.repeat(x, rows, axis=0) for name, x in prompts.items() if name != "stop"}
    decoding = Decoding(
        cache=cache.repeat(rows) if rows > 1 else cache,
        state=state,
        positions=jnp.sum(of_rows["written"], axis=1, dtype=jnp.int32) - 1,
        stop=prompts["stop"],
        **of_rows,
    )
    return _choose(strategy, decoding, jnp.repeat(logits, rows, axis=0), allowed)


@functools.partial(jax.jit, static_argnames=("model", "strategy"), donate_argnames=("decoding",))
def run(
    params: PyTree,
    decoding: Decoding,
    steps: jax.Array,
    allowed: jax.Array | None,
    *,
    model: LanguageModel,
    strategy: Strategy,
) -> Decoding:
    """Returns the batch after at most `steps` more tokens; it stops early if every text has ended.

    Args:
        params: of the model.
        decoding: the batch; its buffers are donated.
        steps: int32 scalar.
        allowed: bool `[rows, vocab]`: the ids that may be chosen, in all steps; None: all.
        model: with unrolled layers.
        strategy: chooses the tokens.
    """

    def go_on(carry: tuple[jax.Array, Decoding]) -> jax.Array:
        return (carry[0] < steps) & ~jnp.all(strategy.finished(carry[1].state))

    def step(carry: tuple[jax.Array, Decoding]) -> tuple[jax.Array, Decoding]:
        done, now = carry
        last = jnp.take_along_axis(now.tokens, now.column[:, None] - 1, axis=1, mode="promise_in_bounds")
        # A row that ended because no id was allowed holds NOTHING (-1), which is no valid id for the embedding.
        last = jnp.maximum(last, 0)
        logits, cache = _read(model, params, row_fields(model, last, now.positions[:, None]), now.cache)
        return done + 1, _choose(strategy, now.replace(cache=cache), logits, allowed)

    return jax.lax.while_loop(go_on, step, (jnp.int32(0), decoding))[1]


def join(decoding: Decoding, other: Decoding, request: jax.Array, *, strategy: Strategy) -> Decoding:
    """Returns the batch with its requests from `request` on replaced by those of another batch.

    Every text continues as it would alone. Stop ids, and the strategy's temperature, penalties and the like, remain
    those of `decoding`.

    Args:
        decoding: the batch; its buffers are donated.
        other: a batch begun with the same model and strategy. Its cache must fit as `Cache.put` says, and its room must
            be at most as large.
        request: int32 scalar, the first request that is replaced; at least as many requests follow it as `other` has.
        strategy: chooses the tokens.

    Raises:
        ValueError: the caches do not fit.
    """
    cache = decoding.cache
    decoding = decoding.replace(cache=cache.replace(filled=cache.filled_rows))
    return _join(decoding, other, request, strategy=strategy)


@functools.partial(jax.jit, static_argnames=("strategy",), donate_argnames=("decoding",))
def _join(decoding: Decoding, other: Decoding, request: jax.Array, *, strategy: Strategy) -> Decoding:
    """Returns the result of `join` for a batch whose cache counts the filled slots of each row."""
    row, room = request * strategy.rows, decoding.tokens.shape[1] - other.tokens.shape[1]
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=row, axis=0)
    wide = {name: jnp.pad(getattr(other, name), ((0, 0), (0, room))) for name in ("tokens", "written")}
    rows = {name: getattr(other, name) for name in ("positions", "column", "count", "limit")} | wide
    return decoding.replace(
        cache=decoding.cache.put(row, other.cache),
        state=strategy.put(decoding.state, other.state, request),
        **{name: put(getattr(decoding, name), x) for name, x in rows.items()},
    )


def row_fields(
    model: LanguageModel, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array | None = None
) -> Fields:
    """Returns the fields of tokens that continue the only segment of their rows; `[rows, length]` each.

    Args:
        model: the model that reads them.
        tokens: the ids.
        positions: of the tokens in their rows.
        segment_ids: 1, or 0 at padding; None: there is no padding.
    """
    side = model.config.family.predicts
    segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
    return {f"{side}tokens": tokens, f"{side}positions": positions, f"{side}segment_ids": segment_ids}


def _read(model: LanguageModel, params: PyTree, fields: Fields, cache: Cache) -> tuple[jax.Array, Cache]:
    """Returns float32 logits `[rows, vocab]` after the last column, and the cache with all columns."""
    hidden, cache = model.apply({"params": params}, fields, cache, method="extend")
    return model.apply({"params": params}, hidden[:, -1], method="logits"), cache


def _choose(strategy: Strategy, now: Decoding, logits: jax.Array, allowed: jax.Array | None) -> Decoding:
    """Returns the batch with one more token in every row; rows that continue another one take over its cache."""
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    inputs = ChoiceInput(logits, now.tokens, now.written, now.count, now.limit, now.stop)
    choice = strategy.choose(inputs, now.state)
    cache, tokens, written, positions = now.cache, now.tokens, now.written, now.positions
    if choice.parents is not None:
        cache = cache.reorder(choice.parents)
        tokens, written, positions = (jnp.take(x, choice.parents, axis=0) for x in (tokens, written, positions))
    # A text that had ended before this choice gets no further token.
    grows = jnp.repeat(~strategy.finished(now.state), strategy.rows).astype(jnp.int32)
    here = (jnp.arange(tokens.shape[1])[None] == now.column[:, None]) & (grows > 0)[:, None]
    return now.replace(
        cache=cache,
        state=choice.state,
        tokens=jnp.where(here, choice.ids[:, None], tokens),
        written=written | here,
        positions=positions + grows,
        column=now.column + grows,
        count=now.count + grows,
    )
