"""A sample of what a model writes: continued, filled in or restored text, by plain forward passes without a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.tokenizer import Tokenizer
from lmjax.model.language_model import LanguageModel

PyTree = Any


def sample_ids(logits: jax.Array, key: jax.Array, temperature: float, top_k: int) -> jax.Array:
    """Returns one id per row of `logits`, drawn among the `top_k` likeliest; the likeliest if temperature is 0."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    kept, ids = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))
    drawn = jax.random.categorical(key, kept / temperature, axis=-1)
    return jnp.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0]


def extend(
    model: LanguageModel,
    params: PyTree,
    batch: dict[str, jax.Array],
    *,
    field: str,
    start: int,
    temperature: float,
    top_k: int,
    banned: Sequence[int],
    seed: int = 0,
) -> np.ndarray:
    """Returns `batch[field]` with positions from `start` on written by the model, left to right.

    Args:
        model: a decoder or an encoder-decoder.
        params: its parameters.
        batch: what the model reads; `field` holds `[rows, length]` ids, those from `start` on to be replaced.
        field: "tokens" or "decoder_tokens".
        start: the first position to write, at least 1.
        temperature: divides the logits; 0 takes the likeliest.
        top_k: how many of the likeliest ids are drawn from.
        banned: ids that are never written.
        seed: of the draws.
    """
    forbidden = jnp.asarray(list(banned), jnp.int32)

    def write(i: jax.Array, tokens: jax.Array) -> jax.Array:
        hidden = model.apply({"params": params}, batch | {field: tokens})
        last = jax.lax.dynamic_slice_in_dim(hidden, i - 1, 1, axis=1)
        logits = model.apply({"params": params}, last, method="logits")[:, 0]
        logits = logits.at[:, forbidden].set(-jnp.inf)
        ids = sample_ids(logits, jax.random.fold_in(jax.random.key(seed), i), temperature, top_k)
        return tokens.at[:, i].set(ids.astype(tokens.dtype))

    length = batch[field].shape[1]
    return np.asarray(jax.jit(lambda tokens: jax.lax.fori_loop(start, length, write, tokens))(batch[field]))


def not_text(model: LanguageModel, tokenizer: Tokenizer) -> list[int]:
    """Returns the ids that stand for no text: special ones, and rows of the model that the tokenizer does not use."""
    return [*sorted(tokenizer.special_ids), *range(tokenizer.vocab_size, model.config.vocab_size)]


def until(ids: np.ndarray, end: int) -> np.ndarray:
    """Returns the ids in front of the first `end`."""
    found = np.flatnonzero(ids == end)
    return ids[: found[0]] if len(found) else ids


def continuation(model: LanguageModel, params: PyTree, tokenizer: Tokenizer, prompt: Sequence[int], count: int) -> str:
    """Returns at most `count` tokens of text that a decoder writes after `prompt`."""
    start = 1 + len(prompt)
    tokens = np.full((1, start + count), tokenizer.pad_id, np.int32)
    tokens[0, :start] = [tokenizer.bos_id, *prompt]
    banned = [i for i in not_text(model, tokenizer) if i != tokenizer.eos_id]
    written = extend(
        model,
        params,
        {"tokens": jnp.asarray(tokens)},
        field="tokens",
        start=start,
        temperature=0.8,
        top_k=40,
        banned=banned,
    )
    return tokenizer.decode(until(written[0, start:], tokenizer.eos_id).tolist())


def filled(
    model: LanguageModel, params: PyTree, tokenizer: Tokenizer, tokens: Sequence[int], masked: Sequence[int]
) -> list[int]:
    """Returns the likeliest text tokens of an encoder at the `masked` positions of [CLS] tokens [SEP]."""
    row = np.array([[tokenizer.cls_id, *tokens, tokenizer.sep_id]], np.int32)
    positions = np.asarray(masked) + 1
    row[0, positions] = tokenizer.mask_id

    @jax.jit
    def predict(batch: dict[str, jax.Array]) -> jax.Array:
        hidden = model.apply({"params": params}, batch)[:, positions]
        logits = model.apply({"params": params}, hidden, method="logits")[0]
        return jnp.argmax(logits.at[:, jnp.asarray(not_text(model, tokenizer))].set(-jnp.inf), axis=-1)

    return np.asarray(predict({"tokens": jnp.asarray(row)})).tolist()


def restored(model: LanguageModel, params: PyTree, tokenizer: Tokenizer, source: np.ndarray, count: int) -> np.ndarray:
    """Returns at most `count` ids that an encoder-decoder writes for `source`, the likeliest one at each step."""
    decoder = np.full((1, count + 1), tokenizer.pad_id, np.int32)
    batch = {"encoder_tokens": jnp.asarray(source[None], jnp.int32), "decoder_tokens": jnp.asarray(decoder)}
    allowed = {tokenizer.eos_id, *tokenizer.sentinels}
    banned = [i for i in not_text(model, tokenizer) if i not in allowed]
    written = extend(model, params, batch, field="decoder_tokens", start=1, temperature=0, top_k=1, banned=banned)
    return until(written[0, 1:], tokenizer.eos_id)
