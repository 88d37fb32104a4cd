"""Text from a model of masked diffusion: masks are replaced by tokens in steps (Nie et al. 2025, section 2.4).

At each step the model reads the whole row, a token is chosen for every mask, and some of these tokens are kept: the
likeliest ones (the low-confidence remasking of arXiv:2502.09992), or those of masks in a random order. The others are
masks again in the next step. With one token per step, a random order and temperature 1, texts have the distribution
whose likelihood the training loss bounds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from lmjax.errors import FlagError
from lmjax.inference.generate.fill_mask import encode_masked
from lmjax.inference.generate.requests import Request, batches
from lmjax.inference.generate.sampling import FilterValues, SamplingConfig, draw, weights
from lmjax.inference.generate.text import Generation, TextStream
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.row_lengths import longest_row, row_length
from lmjax.inference.texts import Text, is_conversation
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.memory import check_fits, device_memory, held
from lmjax.schema import Schema
from lmjax.streams import prng_keys, random_stream

PyTree = Any
# The settings of generation that have a meaning here.
_OF_UNMASKING = (
    "max_new_tokens",
    "sampling",
    "unmask",
    "stop",
    "seed",
    "batch_size",
    "processors",
    "processors.banned",
)
# Settings whose flag has another name.
_FLAGS = {"stop_ids": "stop_id", "cache": "cache_dtype"}


class UnmaskConfig(Schema):
    """How a model of masked diffusion replaces masks by tokens."""

    steps: int | None = Field(
        None, ge=1, description="Steps in which masks are replaced, as evenly as possible; none: one token per step."
    )
    order: Literal["confidence", "random"] = Field(
        "confidence", description="Which masks are replaced first: those with the likeliest tokens, or random ones."
    )
    block: int | None = Field(
        None, ge=1, description="Replace this many masks before those to the right of them; none: in any order."
    )


@dataclasses.dataclass(frozen=True)
class Masked(Request):
    """One text whose masks are replaced; its `prompt` is the whole row, with masks.

    Attributes:
        begin: index in the row at which the returned text begins.
    """

    begin: int = 0


def refuse(given: Mapping[str, Any], usual: Mapping[str, Any], draft: object) -> None:
    """Raises FlagError for a setting that has no meaning where masks are replaced.

    Args:
        given: the fields of a GenerateConfig, nested like it.
        usual: their defaults.
        draft: the draft model, or None.
    """
    given, usual = (of | {f"processors.{name}": x for name, x in of["processors"].items()} for of in (given, usual))
    changed = [name for name, value in given.items() if value != usual[name] and name not in _OF_UNMASKING]
    if draft is None and not changed:
        return
    name = changed[0] if changed else "draft"
    value = "" if not changed else f"={given[name]['beams'] if name == 'beams' else given[name]}"
    field = name.removeprefix("processors.")
    raise FlagError(
        f"--{_FLAGS.get(field, field)}{value}: this model writes by replacing masks, in no order from left to right; "
        "leave it out"
    )


def masked_requests(
    loaded: LoadedModel, prompts: Sequence[Text], seeds: Sequence[int], count: int, names: Sequence[str]
) -> list[Masked]:
    """Returns a request for each prompt; raises FlagError for one that does not fit into a row.

    Args:
        loaded: the model.
        prompts: texts; or ids, which are used as they are. The masks of a prompt that has some are replaced; to another
            one, `count` masks are added, before the ids that end a text.
        seeds: one for each.
        count: masks that are added.
        names: the names of the prompts in error messages.
    """
    loaded.check_vocabulary()
    form, mask, limit = loaded.prompts, loaded.tokenizer.mask_id, longest_row(loaded.config, decoder=False)
    requests = []
    for index, (prompt, seed, name) in enumerate(zip(prompts, seeds, names, strict=True)):
        if is_conversation(prompt):
            raise FlagError(f"{name}: is a conversation, and this encoder continues texts; give a text")
        ids = loaded.ids(prompt, name)
        if isinstance(prompt, str):
            ids = tuple(form.around(encode_masked(loaded.tokenizer, prompt)))
        begin = 0
        if mask not in ids:
            ends = len(form.after) if form.after and ids[-len(form.after) :] == form.after else 0
            begin = len(ids) - ends
            ids = (*ids[:begin], *[mask] * count, *ids[begin:])
        if limit is not None and len(ids) > limit:
            room = limit - len(ids) + count
            remedy = f", or set --max_new_tokens to at most {room}" if begin and room > 0 else ""
            masks = f" with --max_new_tokens={count}" if begin else ""
            raise FlagError(
                f"{name} has {len(ids)} tokens{masks}, and the model's rows have {limit}; shorten it{remedy}"
            )
        requests.append(Masked(index, seed, ids, begin=begin))
    return requests


def unmask(
    loaded: LoadedModel,
    requests: Sequence[Masked],
    config: UnmaskConfig,
    sampling: SamplingConfig,
    banned: Sequence[int] = (),
    stop: tuple[str, ...] = (),
    batch_size: int = 8,
) -> list[Generation]:
    """Returns the text of each request; it depends on the request, not on the others of its batch.

    Args:
        loaded: the model.
        requests: the rows.
        config: steps and order.
        sampling: how the token for a mask is chosen.
        banned: ids that are never chosen, in addition to special tokens and ids that the tokenizer does not have.
        stop: a text ends before the first of these strings; all of its masks are replaced nevertheless.
        batch_size: rows in a batch.

    Raises:
        FlagError: no id is left, or the logits do not fit into memory.
    """
    banned = sorted({*banned, *loaded.prompts.never, *loaded.tokenizer.special_ids})
    if len(banned) >= loaded.config.vocab_size:
        raise FlagError("processors.banned: bans every token; leave some out")
    found: list = [None] * len(requests)
    for batch in batches(requests, batch_size):
        rows, scores = _batch(loaded, batch, config, FilterValues.of(sampling), np.asarray(banned, np.int32))
        for request, row, score in zip(batch, rows, scores, strict=True):
            found[request.index] = _text(loaded, request, row[: len(request.prompt)].tolist(), float(score), stop)
    return found


def _text(loaded: LoadedModel, request: Masked, row: list[int], score: float, stop: tuple[str, ...]) -> Generation:
    """Returns the result of a request, given its row without masks."""
    ids = tuple(new for new, old in zip(row, request.prompt, strict=True) if old == loaded.tokenizer.mask_id)
    special = loaded.tokenizer.special_ids
    context = [i for i in row[: request.begin] if i < loaded.tokenizer.vocab_size]
    stream = TextStream(loaded.tokenizer, context, stop)
    text = "".join([*(stream.push(i) for i in row[request.begin :] if i not in special), stream.finish()])
    return Generation(text, ids, score, "stop" if stream.stopped else "length")


def _batch(
    loaded: LoadedModel, requests: Sequence[Masked], config: UnmaskConfig, numbers: FilterValues, banned: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of a batch without masks, int32 `[requests, width]`, and float32 `[requests]` scores."""
    # As many rows as a power of two, so that few programs are compiled.
    rows = [*requests, *[requests[0]] * ((1 << (len(requests) - 1).bit_length()) - len(requests))]
    limit = longest_row(loaded.config, decoder=False)
    width = row_length(max(len(r.prompt) for r in rows), limit)
    tokens = np.full((len(rows), width), loaded.tokenizer.pad_id, np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    masks = [[i for i, token in enumerate(r.prompt) if token == loaded.tokenizer.mask_id] for r in rows]
    # Places without a mask have a column that does not exist.
    places = np.full((len(rows), row_length(max(map(len, masks)), width)), width, np.int32)
    order = np.zeros(places.shape, np.float32) if config.order == "random" else None
    for i, (request, at) in enumerate(zip(rows, masks, strict=True)):
        size = len(request.prompt)
        tokens[i, :size], segments[i, :size], positions[i, :size] = request.prompt, 1, np.arange(size)
        places[i, : len(at)] = at
        if order is not None:
            order[i, : len(at)] = random_stream(request.seed, "unmasking order").permutation(len(at))
    _check_memory(loaded, places.shape[1])
    totals = np.array([len(at) for at in masks], np.int32)
    steps = totals if config.steps is None else np.minimum(totals, config.steps)
    keys = None if numbers.temperature is None else prng_keys([r.seed for r in rows], "unmasking")
    with loaded.on_devices():
        found, scores = _unmask(
            loaded.params,
            {"tokens": tokens, "positions": positions, "segment_ids": segments},
            _Plan(places, np.int32(config.block or width), steps, order, keys, numbers, banned),
            model=loaded.model,
        )
    return np.asarray(found)[: len(requests)], np.asarray(scores)[: len(requests)]


def _check_memory(loaded: LoadedModel, count: int) -> None:
    """Raises FlagError if the logits of a row's masks do not fit into the memory that the parameters leave."""
    memory = device_memory()
    ways = 1 if memory.shared else loaded.mesh.size
    logits = count * loaded.config.vocab_size * np.dtype(np.float32).itemsize // ways
    check_fits(
        f"{count} masks", {"parameters": held(loaded.params, memory), "logits": logits}, memory, "use fewer masks"
    )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("places", "block", "steps", "order", "keys", "numbers", "banned"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which masks are replaced when, and how.

    Attributes:
        places: int32 `[rows, masks]`, the columns of the masks from left to right; the row's width where there is none.
        block: int32 scalar, masks in a block.
        steps: int32 `[rows]`, at least 1 in a row with masks.
        order: float32 `[rows, masks]`, the smallest is replaced first; None: the one with the likeliest token is.
        keys: random keys `[rows]`; None: greedy.
        numbers: temperature and filters.
        banned: int32 `[ids]`, which are never chosen.
    """

    places: jax.Array
    block: jax.Array
    steps: jax.Array
    order: jax.Array | None
    keys: jax.Array | None
    numbers: FilterValues
    banned: jax.Array


@functools.partial(jax.jit, static_argnames="model")
def _unmask(
    params: PyTree, fields: dict[str, jax.Array], plan: _Plan, *, model: LanguageModel
) -> tuple[jax.Array, jax.Array]:
    """Returns the rows without masks, int32 `[rows, width]`, and float32 `[rows]` scores; all steps are one program."""
    rows, width = fields["tokens"].shape
    at = jnp.arange(rows)[:, None]
    totals = jnp.sum(plan.places < width, axis=1)

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        number, tokens, left, scores = state
        hidden = model.apply({"params": params}, fields | {"tokens": tokens})
        hidden = jnp.take_along_axis(hidden, plan.places[..., None], axis=1, mode="clip")
        ids, gains = _candidates(params, hidden, plan, number, model)
        wanted = (number + 1) * totals // jnp.maximum(plan.steps, 1) - (totals - jnp.sum(left, axis=1))
        chosen = left & (_ranks(left, gains, plan) < wanted[:, None])
        tokens = tokens.at[at, jnp.where(chosen, plan.places, width)].set(ids, mode="drop")
        return number + 1, tokens, left & ~chosen, scores + jnp.sum(jnp.where(chosen, gains, 0), axis=1)

    state = jnp.int32(0), fields["tokens"], plan.places < width, jnp.zeros(rows, jnp.float32)
    _, tokens, _, scores = jax.lax.while_loop(lambda state: jnp.any(state[2]), step, state)
    return tokens, scores


def _candidates(
    params: PyTree, hidden: jax.Array, plan: _Plan, number: jax.Array, model: LanguageModel
) -> tuple[jax.Array, jax.Array]:
    """Returns a token for each mask, int32 `[rows, masks]`, and the model's own log-probability of it, float32.

    The logits of one row are in memory at a time. A draw depends on the row's key, the step and the number of the mask.
    """

    def row(given: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        states, key = given
        logits = model.apply({"params": params}, states[None], method="logits")[0].astype(jnp.float32)
        allowed = logits.at[:, plan.banned].set(-jnp.inf)
        if key is None:
            ids = jnp.argmax(allowed, axis=-1).astype(jnp.int32)
        else:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, number), jnp.arange(len(logits)))
            ids = draw(weights(allowed, plan.numbers), keys)
        picked = jnp.take_along_axis(logits, ids[:, None], axis=1)[:, 0]
        return ids, picked - jax.nn.logsumexp(logits, axis=-1)

    return jax.lax.map(row, (hidden, plan.keys))


def _ranks(left: jax.Array, gains: jax.Array, plan: _Plan) -> jax.Array:
    """Returns int32 `[rows, masks]`: how many of the masks that are left are replaced before each of them."""
    blocks = jnp.where(left, jnp.arange(left.shape[1])[None] // plan.block, left.shape[1])
    order = jnp.lexsort((-gains if plan.order is None else plan.order, blocks), axis=-1)
    return jnp.argsort(order, axis=-1)
