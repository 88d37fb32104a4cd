"""The host half of the decode loop: a batch of requests from its prompts to the generated tokens."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.inference.generate import decode
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.prompt_cache import PromptFiles, load, save
from lmjax.inference.generate.requests import Request, bucket, columns
from lmjax.inference.generate.strategy import Strategy
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.row_lengths import longest_row
from lmjax.model.cache import Cache
from lmjax.model.key_value import CacheType


def read_prompts(
    loaded: LoadedModel,
    requests: Sequence[Request],
    *,
    new_columns: int,
    limit: int,
    stop: Sequence[int],
    chunk: int,
    kind: CacheType = "compute",
    slack: int = 0,
) -> tuple[jax.Array, Cache, dict[str, np.ndarray]]:
    """Returns float32 logits `[rows, vocab]` after the prompts, the filled cache, and fields of `Decoding`.

    The fields are `tokens`, `written`, `column`, `count`, `limit` and `stop`, with a row for each request.

    Args:
        loaded: the model.
        requests: at least one; each is a row.
        new_columns: columns reserved after the prompts.
        limit: the most tokens that are generated for a prompt.
        stop: ids that end a text.
        chunk: tokens of a prompt that are read in one pass.
        kind: of the cache.
        slack: slots that `Cache.rewind` may free again.
    """
    model, (first, *others) = loaded.model, pieces(loaded, requests, chunk)
    fields = prompt_fields(loaded, requests, chunk, new_columns=new_columns, limit=limit, stop=stop)
    capacity = fields["tokens"].shape[1]
    logits, cache = decode.prefill(loaded.params, first, model=model, capacity=capacity, kind=kind, slack=slack)
    for piece in others:
        logits, cache = decode.extend(loaded.params, piece, cache, model=model)
    return logits, cache, fields


def read_alone(
    loaded: LoadedModel, request: Request, config: GenerateConfig, stop: Sequence[int], files: PromptFiles
) -> tuple[jax.Array, Cache, dict[str, np.ndarray]]:
    """Returns what `read_prompts` does for one request whose cache comes from a file, or goes to one.

    There is no padding, because in layers with a window it would take the slots of tokens.
    """
    prompt, room, model = np.array([request.prompt], np.int32), bucket(config.max_new_tokens), loaded.model
    done, width = 0, prompt.shape[1]
    cache = model.empty_cache(1, width + room, kind=config.cache)
    if files.load is not None:
        done, before = load(files.load, loaded, request.prompt, config)
        cache = jax.jit(lambda whole, part: whole.put(0, part))(cache, before)
    for start in range(done, width, config.prefill_chunk):
        piece = prompt[:, start : start + config.prefill_chunk]
        places = np.arange(start, start + piece.shape[1], dtype=np.int32)[None]
        fields = decode.row_fields(model, piece, places)
        if cache.filled is None:
            logits, cache = decode.prefill(loaded.params, fields, model=model, capacity=width + room, kind=config.cache)
        else:
            logits, cache = decode.extend(loaded.params, fields, cache, model=model)
    if files.save is not None:
        save(files.save, loaded, request.prompt, cache, config)
    return (
        logits,
        cache,
        {
            "tokens": np.pad(prompt, ((0, 0), (0, room)), constant_values=loaded.tokenizer.pad_id),
            "written": np.arange(width + room)[None] < width,
            "column": np.full(1, width, np.int32),
            "count": np.zeros(1, np.int32),
            "limit": np.full(1, config.max_new_tokens, np.int32),
            "stop": np.array(sorted(set(stop)) or [-1], np.int32),
        },
    )


def prompt_fields(
    loaded: LoadedModel,
    requests: Sequence[Request],
    chunk: int,
    *,
    new_columns: int,
    limit: int,
    stop: Sequence[int],
) -> dict[str, np.ndarray]:
    """Returns the fields of `Decoding` that prompts have; the arguments are those of `read_prompts`."""
    width, _ = _width(loaded, requests, chunk)
    count, pad, behind = len(requests), loaded.tokenizer.pad_id, ((0, 0), (0, new_columns))
    fields = columns([r.prompt for r in requests], width, pad)
    return {
        "tokens": np.pad(fields["tokens"], behind, constant_values=pad),
        "written": np.pad(fields["segment_ids"] > 0, behind),
        "column": np.full(count, width, np.int32),
        "count": np.full(count, len(loaded.prompts.forced), np.int32),
        "limit": np.full(count, limit, np.int32),
        "stop": np.array(sorted(set(stop)) or [-1], np.int32),
    }


def pieces(loaded: LoadedModel, requests: Sequence[Request], chunk: int) -> list[dict[str, np.ndarray]]:
    """Returns the fields of the passes that read the prompts: the first one fills an empty cache, others follow it.

    Args:
        loaded: the model.
        requests: at least one; each is a row.
        chunk: tokens of a prompt that are read in one pass.
    """
    config, (width, step) = loaded.config, _width(loaded, requests, chunk)
    fields = columns([r.prompt for r in requests], width, loaded.tokenizer.pad_id)
    if loaded.prompts.bidirectional and not config.family.paired:
        fields["prefix"] = fields["segment_ids"]
    found = [
        {f"{config.family.predicts}{name}": x[:, start : start + step] for name, x in fields.items()}
        for start in range(0, width, step)
    ]
    if config.family.paired:
        found[0] |= {f"encoder_{name}": x for name, x in _sources(loaded, requests).items()}
    return found


def _width(loaded: LoadedModel, requests: Sequence[Request], chunk: int) -> tuple[int, int]:
    """Returns the columns that the longest prompt needs, and the columns that are read in one pass."""
    config, longest = loaded.config, max(len(r.prompt) for r in requests)
    if config.family.paired:
        width = chunk = longest
    elif loaded.prompts.bidirectional:
        # In a bidirectional prefix the first token attends to the last one: the whole prompt is read in one pass.
        width = chunk = bucket(longest)
    else:
        width = bucket(longest, chunk)
        chunk = min(chunk, width)
    if (ways := loaded.mesh.shape["sequence"]) > 1:
        # Devices that split the positions read the whole prompt in one pass.
        width = chunk = -(-bucket(longest) // ways) * ways
    if config.scheme(True).table and chunk > config.max_length:
        width = chunk = config.max_length
    return width, chunk


def _sources(loaded: LoadedModel, requests: Sequence[Request]) -> dict[str, np.ndarray]:
    """Returns the fields of the encoder's batch."""
    sources, config = [r.source for r in requests], loaded.config
    width = bucket(max(map(len, sources)))
    if (limit := longest_row(config, decoder=False)) is not None:
        width = min(width, limit)
    return columns(sources, width, loaded.tokenizer.pad_id)


class Writing:
    """A batch of requests during generation. Its number of rows is a power of two, to compile few programs.

    Attributes:
        requests: the requests, in the order of their rows.
        start: the first generated column.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        requests: Sequence[Request],
        strategy: Strategy,
        *,
        stop: Sequence[int],
        max_new_tokens: int,
        chunk: int,
        kind: CacheType = "compute",
        allowed: np.ndarray | None = None,
        read: tuple[jax.Array, Cache, dict[str, np.ndarray]] | None = None,
    ):
        """Reads the prompts and chooses the first tokens.

        Args:
            loaded: the model.
            requests: at least one.
            strategy: chooses the tokens.
            stop: ids that end a text.
            max_new_tokens: the most tokens that are generated for a prompt.
            chunk: tokens of a prompt that are read in one pass.
            kind: of the cache.
            allowed: bool `[requests, vocab]`: ids allowed for the first token; None: all.
            read: the result of `read_alone` for the only request; None: the prompts are read here.
        """
        self.requests, self._loaded, self._strategy = tuple(requests), loaded, strategy
        # Rows that fill up the batch repeat its first request, so that they end when it ends.
        self._surplus = (1 << (len(requests) - 1).bit_length()) - len(requests)
        rows = [*requests, *[requests[0]] * self._surplus]
        with loaded.on_devices():
            logits, cache, prompts = read or read_prompts(
                loaded,
                rows,
                new_columns=bucket(max_new_tokens),
                limit=max_new_tokens,
                stop=stop,
                chunk=chunk,
                kind=kind,
            )
            self.start = int(prompts["column"][0])
            state = strategy.start([r.seed for r in rows], prompts["tokens"].shape[1])
            self.decoding = decode.begin(logits, cache, state, prompts, self._all(allowed), strategy=strategy)

    @property
    def finished(self) -> np.ndarray:
        """Returns bool `[requests]`: those whose text has ended."""
        return np.asarray(self._strategy.finished(self.decoding.state))[: len(self.requests)]

    def advance(self, steps: int, allowed: np.ndarray | None = None) -> None:
        """Generates at most `steps` more tokens of every text; an `allowed` mask is valid for one step only."""
        loaded = self._loaded
        with loaded.on_devices():
            self.decoding = decode.run(
                loaded.params,
                self.decoding,
                np.int32(steps),
                self._all(allowed),
                model=loaded.model,
                strategy=self._strategy,
            )

    def written(self) -> np.ndarray:
        """Returns int32 `[rows of the requests, tokens]`: the generated tokens, padded after the end of each text."""
        end = int(np.asarray(self.decoding.column).max())
        rows = len(self.requests) * self._strategy.rows
        return np.asarray(self.decoding.tokens)[:rows, self.start : end]

    def score(self, row: int, count: int) -> float:
        """Returns the sum of the log-probabilities of the `count` tokens of a text that has ended."""
        # A constraint may be satisfied by the empty text: then the score of the chosen token does not count.
        return float(self.decoding.state.scores[row]) if count else 0.0

    def finish(self, ended: np.ndarray) -> None:
        """Marks texts as ended where bool `[requests]` is True; only for strategies with one row for each request."""
        state = self.decoding.state
        ended = np.pad(ended, (0, self._surplus), constant_values=bool(ended[0]))
        self.decoding = self.decoding.replace(state=state.replace(done=state.done | jnp.asarray(ended)))

    def _all(self, allowed: np.ndarray | None) -> np.ndarray | None:
        """Returns the mask of allowed ids, extended by the rows that fill up the batch."""
        return None if allowed is None else np.concatenate([allowed, np.repeat(allowed[:1], self._surplus, axis=0)])
