"""Generation of texts of any length with a cache of constant size (`lmjax.model.rolling`).

A prompt is read in parts of at most `prefill_chunk` tokens and of at most the window. No array has the length of the
text, so neither memory nor the time of a token grows with it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import FlagError
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.decode import row_fields
from lmjax.inference.generate.prompt_cache import PromptFiles, load, save
from lmjax.inference.generate.requests import Request
from lmjax.inference.generate.strategy import ChoiceInput, Strategy
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.row_lengths import longest_row
from lmjax.model.config import ModelConfig
from lmjax.model.key_value import CacheType
from lmjax.model.language_model import LanguageModel
from lmjax.model.rolling import RollingCache, reads_many

PyTree = Any
# The most tokens that are generated in one call of the compiled program.
CALL = 64


def check_window(loaded: LoadedModel, config: GenerateConfig, draft: LoadedModel | None) -> None:
    """Raises FlagError if a model cannot write with a window, or not with one of this size."""
    flag, kept, family = f"--window={config.window}", config.window + config.sinks, loaded.config.family
    if draft is not None:
        raise FlagError(f"{flag} and a draft model cannot be combined; leave one out")
    if family.paired or not family.causal:
        raise FlagError(f"{flag}: is for decoders, and this is an {family.label}; leave it out")
    if loaded.prompts.bidirectional:
        raise FlagError(f"{flag}: this model reads a prompt in both directions, and so at once; leave it out")
    if loaded.config.scheme(True).table:
        raise FlagError(
            f"{flag}: this model has a learned vector for each position, and tokens in a window change their positions;"
            " leave it out"
        )
    limit = longest_row(loaded.config, decoder=True)
    if limit is not None and kept > limit:
        raise FlagError(
            f"{flag} and --sinks={config.sinks} keep {kept} tokens, and the model's rows have {limit}; lower --window"
            f" to at most {limit - config.sinks}"
        )


@flax.struct.dataclass
class Rolling:
    """A text during generation.

    Attributes:
        cache: of all tokens but the last chosen one.
        state: of the strategy.
        last: int32 scalar, the last chosen token.
        count: int32 scalar, tokens generated so far.
        limit: int32 scalar, the most that may be generated.
        stop: int32 `[stops]`, ids that end the text; -1 is none.
    """

    cache: RollingCache
    state: PyTree
    last: jax.Array
    count: jax.Array
    limit: jax.Array
    stop: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "sinks", "window", "kind"))
def empty_cache(config: ModelConfig, sinks: int, window: int, kind: CacheType = "compute") -> RollingCache:
    """Returns an empty cache with an array of its own for each layer, so that it can be updated in place."""
    return RollingCache.empty(config, sinks, window, kind)


def _next(
    model: LanguageModel, params: PyTree, token: jax.Array, cache: RollingCache
) -> tuple[jax.Array, RollingCache]:
    """Returns float32 logits `[1, vocab]` after one more token, an int32 scalar, and the cache with it."""
    fields = row_fields(model, token[None, None], cache.position[None, None])
    hidden, cache = model.apply({"params": params}, fields, cache, method="extend")
    return model.apply({"params": params}, hidden[:, -1], method="logits"), cache


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("cache",))
def read(
    params: PyTree, tokens: jax.Array, count: jax.Array, cache: RollingCache, *, model: LanguageModel
) -> tuple[jax.Array, RollingCache]:
    """Returns float32 logits `[1, vocab]` after the first `count` of some tokens, and the cache with these.

    The tokens are read at once, or one by one if layers have narrower windows or biases of their own (`reads_many`).

    Args:
        params: of the model.
        tokens: int32 `[chunk]`, at most the window.
        count: int32 scalar, at least 1.
        cache: updated in place.
        model: with unrolled layers.
    """
    if reads_many(model.config, cache.capacity):
        numbers = jnp.arange(len(tokens))
        positions, real = cache.positions_of(cache.filled + numbers), (numbers < count).astype(jnp.int32)
        fields = row_fields(model, tokens[None], positions[None], real[None])
        hidden, cache = model.apply({"params": params}, fields, cache, method="extend")
        return model.apply({"params": params}, jnp.take(hidden, count - 1, axis=1), method="logits"), cache

    def step(i: jax.Array, carry: tuple[jax.Array, RollingCache]) -> tuple[jax.Array, RollingCache]:
        return _next(model, params, tokens[i], carry[1])

    nothing = jnp.zeros((1, model.config.vocab_size), jnp.float32)
    return jax.lax.fori_loop(0, count, step, (nothing, cache))


def _choose(strategy: Strategy, logits: jax.Array, now: Rolling, allowed: jax.Array | None) -> Rolling:
    """Returns the text with one more token."""
    logits = logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)
    one = jnp.reshape(jnp.maximum(now.last, 0), (1, 1))
    inputs = ChoiceInput(logits, one, jnp.ones_like(one, bool), now.count[None], now.limit[None], now.stop)
    choice = strategy.choose(inputs, now.state)
    return now.replace(state=choice.state, last=choice.ids[0], count=now.count + 1)


@functools.partial(jax.jit, static_argnames=("strategy",))
def begin(logits: jax.Array, now: Rolling, allowed: jax.Array | None, *, strategy: Strategy) -> Rolling:
    """Returns a text with its first token chosen."""
    return _choose(strategy, logits, now, allowed)


@functools.partial(jax.jit, static_argnames=("model", "strategy"), donate_argnames=("now",))
def run(
    params: PyTree,
    now: Rolling,
    steps: jax.Array,
    allowed: jax.Array | None,
    *,
    model: LanguageModel,
    strategy: Strategy,
) -> tuple[Rolling, jax.Array]:
    """Returns the text after at most `steps` more tokens, and these tokens, int32 `[CALL]`.

    Args:
        params: of the model.
        now: the text; its buffers are donated.
        steps: int32 scalar, at most CALL.
        allowed: bool `[1, vocab]`, the ids that may be chosen; None: all.
        model: with unrolled layers.
        strategy: chooses the tokens.
    """

    def go_on(carry: tuple[jax.Array, Rolling, jax.Array]) -> jax.Array:
        return (carry[0] < steps) & ~jnp.all(strategy.finished(carry[1].state))

    def step(carry: tuple[jax.Array, Rolling, jax.Array]) -> tuple[jax.Array, Rolling, jax.Array]:
        done, now, tokens = carry
        logits, cache = _next(model, params, jnp.maximum(now.last, 0), now.cache)
        now = _choose(strategy, logits, now.replace(cache=cache), allowed)
        return done + 1, now, tokens.at[done].set(now.last)

    return jax.lax.while_loop(go_on, step, (jnp.int32(0), now, jnp.zeros(CALL, jnp.int32)))[1:]


class RollingWriting:
    """A text during generation; it has the methods of `lmjax.inference.generate.writing.Writing`."""

    def __init__(
        self,
        loaded: LoadedModel,
        request: Request,
        strategy: Strategy,
        config: GenerateConfig,
        stop: Sequence[int],
        *,
        allowed: np.ndarray | None = None,
        files: PromptFiles = PromptFiles(),  # noqa: B008
    ):
        """Reads the prompt and chooses the first token."""
        self._loaded, self._strategy = loaded, strategy
        prompt, chunk = np.array(request.prompt, np.int32), min(config.prefill_chunk, config.window)
        self._ids, self._count = np.zeros(config.max_new_tokens, np.int32), 0
        with loaded.on_devices():
            cache = empty_cache(loaded.config, config.sinks, config.window, config.cache)
            done = 0
            if files.load is not None:
                done, cache = load(files.load, loaded, request.prompt, config)
            for start in range(done, len(prompt), chunk):
                piece = prompt[start : start + chunk]
                tokens = np.pad(piece, (0, chunk - len(piece)))
                logits, cache = read(loaded.params, tokens, np.int32(len(piece)), cache, model=loaded.model)
            if files.save is not None:
                save(files.save, loaded, request.prompt, cache, config)
            zero, limit = np.int32(0), np.int32(config.max_new_tokens)
            stops = np.array(sorted(set(stop)) or [-1], np.int32)
            now = Rolling(cache, strategy.start([request.seed], 1), zero, zero, limit, stops)
            self._now = begin(logits, now, allowed, strategy=strategy)
        self._take(np.asarray(self._now.last)[None])

    @property
    def finished(self) -> np.ndarray:
        """Returns bool `[1]`: whether the text has ended."""
        return np.asarray(self._strategy.finished(self._now.state))

    def advance(self, steps: int, allowed: np.ndarray | None = None) -> None:
        """Generates at most `steps` more tokens; an `allowed` mask is valid for one step only."""
        loaded = self._loaded
        with loaded.on_devices():
            while steps > 0 and not self.finished.all():
                self._now, tokens = run(
                    loaded.params,
                    self._now,
                    np.int32(min(steps, CALL)),
                    allowed,
                    model=loaded.model,
                    strategy=self._strategy,
                )
                self._take(np.asarray(tokens))
                steps -= CALL

    def _take(self, tokens: np.ndarray) -> None:
        """Stores the tokens that were generated since the last call; others follow them in the array."""
        before, self._count = self._count, int(self._now.count)
        self._ids[before : self._count] = tokens[: self._count - before]

    def written(self) -> np.ndarray:
        """Returns int32 `[1, tokens]`: the generated tokens."""
        return self._ids[None, : self._count]

    def score(self, row: int, count: int) -> float:
        """Returns the sum of the log-probabilities of the `count` tokens of a text that has ended."""
        return float(self._now.state.scores[row]) if count else 0.0

    def finish(self, ended: np.ndarray) -> None:
        """Marks the text as ended where bool `[1]` is True."""
        state = self._now.state
        self._now = self._now.replace(state=state.replace(done=state.done | jnp.asarray(ended)))
