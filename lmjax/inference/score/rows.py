"""Batches of rows for scoring, and the log-likelihoods that the model gives them.

A piece is the input of one forward pass over one text, with the positions and targets of its predictions. All families
are scored through pieces. Short pieces are packed into a shared row without influence on each other, and rows have few
different lengths, so that few batch shapes are compiled.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from pydantic import Field

from lmjax.data.packing import pack
from lmjax.inference.loaded import LoadedModel, PyTree
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.rows import pad, side
from lmjax.parallel.mesh import batch_sharding, batch_shards
from lmjax.schema import Schema

# Float32 logits in memory at a time: 256 MiB, for any size of the vocabulary.
_LOGITS = 2**26
# Batches whose pieces are in host memory at a time: an encoder's text has as many pieces as tokens.
_BATCHES = 64


class RowConfig(Schema):
    """How much is computed at a time; results do not depend on it."""

    batch_tokens: int = Field(4096, ge=1, description="tokens of a batch, at least a row for every part of the mesh")
    row_length: int = Field(
        256, ge=8, description="tokens of a row that short texts share; longer ones get longer rows"
    )


@dataclasses.dataclass(frozen=True)
class Piece:
    """The input of one forward pass over one text, and its predictions.

    Attributes:
        tokens: ids that the predicting side (the decoder of an encoder-decoder) reads.
        at: indices in `tokens`, ascending, at which the model predicts.
        targets: the id that is predicted at each of them.
        source: ids that the encoder of an encoder-decoder reads.
        prefix: length of the bidirectional prefix, for a decoder that was trained with one.
        factor: by which its log-probabilities are multiplied in the score of its text.
    """

    tokens: Sequence[int]
    at: Sequence[int]
    targets: Sequence[int]
    source: Sequence[int] | None = None
    prefix: int = 0
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows on the host.

    Attributes:
        fields: the model's input, `[rows, length]` by name.
        at: int32 `[rows, predictions]`, columns of a row; 0 where nothing is predicted.
        targets: int32 `[rows, predictions]`.
        owners: (piece, row, begin, end) of every piece in the batch: its predictions are `[row, begin:end]`.
    """

    fields: dict[str, np.ndarray]
    at: np.ndarray
    targets: np.ndarray
    owners: list[tuple[int, int, int, int]]


def room(config: ModelConfig, row_length: int, tokens: int) -> int:
    """Returns the length of the row for a text of `tokens` tokens: one of few lengths, at most 1.5 times as long.

    Args:
        config: of the model.
        row_length: length of the rows that short texts share.
        tokens: tokens of the text.
    """
    limit = min(scheme.steady(config) for scheme in config.schemes)
    shared = min(row_length, limit)
    if tokens <= shared:
        return shared
    if tokens > limit:
        # Beyond `limit`, position encodings depend on the row's length, such as rotary ones with dynamic scaling.
        return tokens
    step = shared * 2 ** int(math.log2((tokens - 1) / shared)) // 2
    return min(-(-tokens // step) * step, limit)


def _sizes(lengths: np.ndarray, rooms: tuple[int, int]) -> tuple[int, int]:
    """Returns the row lengths of encoder and decoder for a class of pieces.

    The side with fewer tokens gets a shorter row, so that both sides have about the same share of padding.

    Args:
        lengths: `[pieces, 2]`, tokens of each side.
        rooms: the row length that each side would have alone.
    """
    total, longest = lengths.sum(0), lengths.max(0)
    small = int(np.argmin(total / rooms))
    wanted = max(longest[small], total[small] / max(total[1 - small], 1) * rooms[1 - small])
    sizes = list(rooms)
    while sizes[small] % 2 == 0 and sizes[small] // 2 >= max(wanted, 8):
        sizes[small] //= 2
    return sizes[0], sizes[1]


def batches(loaded: LoadedModel, pieces: Sequence[Piece], config: RowConfig) -> Iterator[Batch]:
    """Yields batches that together contain every piece exactly once.

    Args:
        loaded: the model.
        pieces: none longer than the model's rows.
        config: how much is computed at a time.
    """
    lengths = np.array([[len(p.source) if p.source is not None else 0, len(p.tokens)] for p in pieces])
    classes: dict[tuple[int, int], list[int]] = {}
    for i, (source, tokens) in enumerate(lengths.tolist()):
        rooms = tuple(room(loaded.config, config.row_length, n) for n in (source, tokens))
        classes.setdefault(rooms, []).append(i)
    for rooms, members in sorted(classes.items()):
        own = lengths[members]
        paired = loaded.config.family.paired
        sizes = _sizes(own, rooms) if paired else (1, rooms[1])
        capacity = max(sizes)
        costs = np.maximum(*(-(-own[:, k] * capacity // sizes[k]) for k in (0, 1)))
        plan = pack(costs, max_piece=capacity, cost=lambda n: n, capacity=capacity)
        rows = [[members[j] for j in plan.row(r)[0].tolist()] for r in range(len(plan))]
        yield from _stacked(loaded, pieces, rows, sizes, config.batch_tokens)


def _stacked(
    loaded: LoadedModel, pieces: Sequence[Piece], rows: list[list[int]], sizes: tuple[int, int], batch_tokens: int
) -> Iterator[Batch]:
    """Yields the batches of rows of one length, all of one shape; the last is padded with empty rows."""
    shards = batch_shards(loaded.mesh)
    predictions = _power(max(sum(len(pieces[i].targets) for i in row) for row in rows), 8)
    full = max(batch_tokens // (sum(sizes) * shards), 1)
    height = shards * min(full, _power(-(-len(rows) // shards)))
    for start in range(0, len(rows), height):
        chosen = rows[start : start + height]
        fields = [_fields(loaded, [pieces[i] for i in row], sizes) for row in chosen]
        fields += [_fields(loaded, [], sizes)] * (height - len(chosen))
        at, targets = (np.zeros((height, predictions), np.int32) for _ in range(2))
        owners = []
        for r, row in enumerate(chosen):
            offset, used = 0, 0
            for i in row:
                end = used + len(pieces[i].targets)
                at[r, used:end] = offset + np.asarray(pieces[i].at)
                targets[r, used:end] = pieces[i].targets
                owners.append((i, r, used, end))
                offset, used = offset + len(pieces[i].tokens), end
        yield Batch({name: np.stack([f[name] for f in fields]) for name in fields[0]}, at, targets, owners)


def _fields(loaded: LoadedModel, pieces: list[Piece], sizes: tuple[int, int]) -> dict[str, np.ndarray]:
    """Returns the model's input for the pieces that share a row, each field `[length]`."""
    fill, nothing = loaded.tokenizer.pad_id, [np.zeros(0, np.int32)]
    tokens = [np.asarray(p.tokens, np.int32) for p in pieces] or nothing
    if loaded.config.family.paired:
        sources = [np.asarray(p.source, np.int32) for p in pieces] or nothing
        return side(sources, sizes[0], fill, "encoder_") | side(tokens, sizes[1], fill, "decoder_")
    fields = side(tokens, sizes[1], fill)
    if loaded.prompts.bidirectional:
        seen = [np.arange(len(p.tokens)) < p.prefix for p in pieces] or nothing
        fields["prefix"] = pad(np.concatenate(seen), sizes[1])
    return fields


def _power(n: int, least: int = 1) -> int:
    """Returns the smallest number of the form `least * 2**k` that is at least `n`."""
    return least * 2 ** max(math.ceil(math.log2(n / least)), 0)


def states(model: LanguageModel, params: PyTree, fields: dict[str, jax.Array], at: jax.Array) -> jax.Array:
    """Returns the hidden states `[rows, predictions, embed]` at the positions `at`, `[rows, predictions]`."""
    hidden = model.apply({"params": params}, fields)
    return jnp.take_along_axis(hidden, at[..., None], axis=1)


def replicated(tree: PyTree) -> PyTree:
    """Returns traced arrays, replicated over all processes so that each process can fetch them."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


@functools.partial(jax.jit, static_argnames=("model", "parts"))
def _token_scores(
    model: LanguageModel,
    params: PyTree,
    fields: dict[str, jax.Array],
    at: jax.Array,
    targets: jax.Array,
    parts: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns the targets' log-probabilities and whether each is the argmax, `[rows, predictions]`.

    The vocabulary projection runs only at the predictions, in `parts` sequential parts to bound its memory.
    """

    def part(given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden, wanted = given
        logits = model.apply({"params": params}, hidden, method="logits").astype(jnp.float32)
        picked = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
        return picked - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == wanted

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], parts, -1, *x.shape[2:]), 1, 0)

    scores = jax.lax.map(part, (split(states(model, params, fields, at)), split(targets)))
    return replicated(tuple(jnp.moveaxis(x, 0, 1).reshape(targets.shape) for x in scores))


def _parts(loaded: LoadedModel, shape: tuple[int, int]) -> int:
    """Returns the number of parts, a power of two, in which logits for predictions of this shape are computed."""
    held = shape[0] // batch_shards(loaded.mesh) * loaded.config.vocab_size
    return min(_power(-(-held * shape[1] // _LOGITS)), shape[1])


def token_scores(
    loaded: LoadedModel, pieces: Iterable[Piece], config: RowConfig
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields for every piece, in order, its targets' log-probabilities (nats) and whether each is the argmax.

    Args:
        loaded: the model.
        pieces: the inputs and targets, read lazily.
        config: how much is computed at a time.
    """
    sharding = batch_sharding(loaded.mesh)

    def compute(batch: Batch) -> tuple[jax.Array, jax.Array]:
        given = jax.device_put((batch.fields, batch.at, batch.targets), sharding)
        with loaded.on_devices():
            return _token_scores(loaded.model, loaded.params, *given, _parts(loaded, batch.at.shape))

    for block in _blocks(pieces, _BATCHES * config.batch_tokens):
        found: list = [None] * len(block)
        running = None
        # A batch's results are fetched after the next batch was dispatched, so that the device does not wait.
        for batch in itertools.chain(batches(loaded, block, config), [None]):
            ahead = (batch, compute(batch)) if batch is not None else None
            if running is not None:
                scores, best = jax.device_get(running[1])
                for i, row, start, end in running[0].owners:
                    found[i] = scores[row, start:end], best[row, start:end]
            running = ahead
        yield from found


def _blocks(pieces: Iterable[Piece], tokens: int) -> Iterator[list[Piece]]:
    """Yields the pieces in lists of about `tokens` tokens each."""
    block: list[Piece] = []
    count = 0
    for piece in pieces:
        block.append(piece)
        count += len(piece.tokens) + len(piece.source or ())
        if count >= tokens:
            yield block
            block, count = [], 0
    if block:
        yield block
