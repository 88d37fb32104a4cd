"""The rounds of speculative decoding on the device: tokens are guessed, read in one pass, and kept or replaced."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.inference.generate.decode import row_fields
from lmjax.inference.generate.processors import apply
from lmjax.inference.generate.sampling import SamplingState, draw, probabilities
from lmjax.inference.generate.strategy import NOTHING, ChoiceInput
from lmjax.model.cache import Cache
from lmjax.model.language_model import LanguageModel
from lmjax.streams import prng_key

PyTree = Any

# The purpose of a draw, folded into its key so that no two draws of a round share one.
_GUESS, _ACCEPT, _CORRECT = range(3)


@flax.struct.dataclass
class SpeculativeState:
    """The state of one text during speculative decoding.

    Attributes:
        cache: of the model; it holds all tokens but the last.
        draft: the cache of the smaller model, or None.
        state: of sampling.
        tokens: int32 `[1, room]`: the prompt, then the generated tokens.
        written: bool `[1, room]`: where `tokens` holds a token.
        column: int32 scalar: the next column of `tokens` to be written.
        count: int32 scalar: tokens generated so far, forced ones included.
        limit: int32 scalar: the most tokens that may be generated.
        stop: int32 `[stops]`: ids that end the text; -1 is none.
        gains: float32 `[1, room]`: the log-probability of each generated token under the model.
        rounds: int32 scalar: passes of the model.
    """

    cache: Cache
    draft: Cache | None
    state: SamplingState
    tokens: jax.Array
    written: jax.Array
    column: jax.Array
    count: jax.Array
    limit: jax.Array
    stop: jax.Array
    gains: jax.Array
    rounds: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "draft", "guesses", "lookup"), donate_argnames=("now",))
def rounds(
    params: PyTree,
    draft_params: PyTree,
    now: SpeculativeState,
    steps: jax.Array,
    *,
    model: LanguageModel,
    draft: LanguageModel | None,
    guesses: int,
    lookup: int,
) -> SpeculativeState:
    """Returns the text after at most `steps` rounds of guessing and checking.

    Args:
        params: of the model.
        draft_params: of the smaller model, or None.
        now: the text; its buffers are donated.
        steps: int32 scalar.
        model: with unrolled layers.
        draft: the smaller model, or None.
        guesses: tokens guessed in a round.
        lookup: the number of last tokens whose earlier occurrence is searched for.
    """

    def go_on(carry: tuple[jax.Array, SpeculativeState]) -> jax.Array:
        return (carry[0] < steps) & ~carry[1].state.done[0]

    def step(carry: tuple[jax.Array, SpeculativeState]) -> tuple[jax.Array, SpeculativeState]:
        done, now = carry
        if draft is None:
            ids, chances = look_up(now, guesses, lookup, model.config.vocab_size)
        else:
            ids, chances, cache = _draft(draft, draft_params, now, guesses)
            now = now.replace(draft=cache)
        return done + 1, _check(model, params, now, ids, chances)

    return jax.lax.while_loop(go_on, step, (jnp.int32(0), now))[1]


def look_up(now: SpeculativeState, guesses: int, lookup: int, vocab: int) -> tuple[jax.Array, jax.Array]:
    """Returns the tokens that followed an earlier occurrence of the last ones (Saxena 2023, prompt lookup decoding).

    They are int32 `[guesses]`, with their one-hot distribution `[guesses, vocab]`. Of several occurrences the latest
    counts; if there is none, each guess repeats the last token.
    """
    tokens, room = now.tokens[0], now.tokens.shape[1]
    last = jax.lax.dynamic_slice_in_dim(tokens, now.column - lookup, lookup)
    starts = jnp.arange(room)
    same = jnp.all(tokens[(starts[:, None] + jnp.arange(lookup)[None]) % room] == last[None], axis=1)
    # A token must follow the occurrence before `column`, which excludes the last tokens themselves.
    same &= (starts + lookup < now.column) & now.written[0]
    place = jnp.max(jnp.where(same, starts, -1))
    at = jnp.where(place >= 0, place + lookup, now.column - 1) + jnp.arange(guesses)
    ids = tokens[jnp.minimum(at, now.column - 1)]
    return ids, jax.nn.one_hot(ids, vocab, dtype=jnp.float32)


def _draft(
    draft: LanguageModel, params: PyTree, now: SpeculativeState, guesses: int
) -> tuple[jax.Array, jax.Array, Cache]:
    """Returns the smaller model's guesses `[guesses]`, their distributions `[guesses, vocab]`, and its cache."""

    def guess(carry: tuple[Any, ...], i: jax.Array) -> tuple[tuple[Any, ...], tuple[jax.Array, jax.Array]]:
        tokens, written, cache = carry
        logits, cache = _read_on(draft, params, tokens, now, i, 1, cache)
        found = probabilities(_processed(logits, tokens, written, now.count + i, now), now.state.numbers)
        drawn = draw(found, _key(now, _GUESS, i)[None])
        tokens, written = _put(tokens, drawn, now.column + i), _put(written, jnp.ones((1,), bool), now.column + i)
        return (tokens, written, cache), (drawn[0], found[0])

    # One more step, whose guess is dropped, reads the last guess: the next round needs it if all are accepted.
    start = now.tokens, now.written, now.draft
    (_, _, cache), (ids, chances) = jax.lax.scan(guess, start, jnp.arange(guesses + 1))
    return ids[:guesses], chances[:guesses], cache


def _check(
    model: LanguageModel, params: PyTree, now: SpeculativeState, ids: jax.Array, chances: jax.Array
) -> SpeculativeState:
    """Returns the text extended by the accepted guesses and one more token, drawn from the model's distribution."""
    guesses = len(ids)
    tokens, written = _put(now.tokens, ids, now.column), now.written
    logits, cache = _read_on(model, params, tokens, now, 0, guesses + 1, now.cache)
    # Row i is the text with its first i guesses.
    rows = jnp.broadcast_to(tokens, (guesses + 1, tokens.shape[1]))
    ahead = jnp.arange(tokens.shape[1])[None] - now.column - jnp.arange(guesses + 1)[:, None]
    in_front = written | ((ahead < 0) & (jnp.arange(tokens.shape[1])[None] >= now.column))
    counts = now.count + jnp.arange(guesses + 1)
    found = probabilities(_processed(logits, rows, in_front, counts, now), now.state.numbers)

    at = jnp.arange(guesses)
    chance = jax.random.uniform(_key(now, _ACCEPT, 0), (guesses,))
    kept = chance * chances[at, ids] < found[at, ids]
    count = jnp.sum(jnp.cumprod(kept))
    # The distribution of the last token: max(p - q, 0) after a rejection, p if all guesses were accepted.
    guessed = jnp.where(count < guesses, chances[jnp.minimum(count, guesses - 1)], 0)
    rest = jnp.maximum(found[count] - guessed, 0)
    rest = jnp.where(jnp.sum(rest) > 0, rest, found[count])
    last = draw(rest[None], _key(now, _CORRECT, 0)[None])[0]
    last = jnp.where(jnp.sum(found[count]) > 0, last, NOTHING)

    new = jnp.where(jnp.arange(guesses + 1) < count, jnp.append(ids, 0), last)
    total = jax.nn.log_softmax(logits)[jnp.arange(guesses + 1), new]
    ends = (
        (new == NOTHING)
        | jnp.any(new[:, None] == now.stop[None], axis=1)
        | (now.count + jnp.arange(1, guesses + 2) >= now.limit)
    )
    mine = jnp.arange(guesses + 1) <= count
    columns = jnp.arange(tokens.shape[1])
    return now.replace(
        cache=cache.rewind(cache.filled - guesses + count),
        draft=None if now.draft is None else now.draft.rewind(now.draft.filled - guesses + count),
        state=now.state.replace(done=now.state.done | jnp.any(mine & ends)),
        tokens=_put(now.tokens, new, now.column),
        written=now.written | ((columns >= now.column) & (columns <= now.column + count))[None],
        column=now.column + count + 1,
        count=now.count + count + 1,
        gains=_put(now.gains, total, now.column),
        rounds=now.rounds + 1,
    )


def _read_on(
    model: LanguageModel,
    params: PyTree,
    tokens: jax.Array,
    now: SpeculativeState,
    ahead: int | jax.Array,
    length: int,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Returns float32 logits `[length, vocab]` after `length` tokens, the first `ahead` tokens after the last one."""
    pieces = jax.lax.dynamic_slice_in_dim(tokens, now.column - 1 + ahead, length, axis=1)
    positions = jnp.sum(now.written, dtype=jnp.int32) - 1 + ahead + jnp.arange(length)[None]
    segments = None
    if model.config.scheme(True).table:
        # Guesses beyond the last position of the table are read as padding; they are cut off later.
        last = model.config.max_length - 1
        positions, segments = jnp.minimum(positions, last), (positions <= last).astype(jnp.int32)
    fields = row_fields(model, pieces, positions, segments)
    hidden, cache = model.apply({"params": params}, fields, cache, method="extend")
    return model.apply({"params": params}, hidden[0], method="logits"), cache


def _processed(
    logits: jax.Array, tokens: jax.Array, written: jax.Array, counts: jax.Array, now: SpeculativeState
) -> jax.Array:
    """Returns the logits `[rows, vocab]` after penalties and bans, for rows with `counts` generated tokens each."""

    def one(logits: jax.Array, tokens: jax.Array, written: jax.Array, count: jax.Array) -> jax.Array:
        inputs = ChoiceInput(logits[None], tokens[None], written[None], count[None], now.limit[None], now.stop)
        return apply(logits[None], inputs, now.state.processors)[0]

    return jax.vmap(one)(logits, tokens, written, jnp.broadcast_to(counts, (len(logits),)))


def _key(now: SpeculativeState, purpose: int, number: int | jax.Array) -> jax.Array:
    """Returns the key of a draw; for greedy decoding a constant key, as nothing depends on it."""
    if now.state.keys is None:
        return prng_key(0, "certain")
    round_key = jax.random.fold_in(now.state.keys[0], now.count)
    return jax.random.fold_in(jax.random.fold_in(round_key, purpose), number)


def _put(x: jax.Array, new: jax.Array, column: jax.Array) -> jax.Array:
    """Returns `x`, `[1, room]`, with `new`, `[length]`, written from `column` on."""
    return jax.lax.dynamic_update_slice_in_dim(x, new[None].astype(x.dtype), column, axis=1)
