"""An encoder's predictions for masked tokens (Devlin et al. 2019, arXiv:1810.04805, section 3.1)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.fast_tokenizer import FastTokenizer
from lmjax.data.sentencepiece_model import MASK
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel, PyTree, check_arguments
from lmjax.inference.score.rows import Piece, RowConfig, batches, replicated, states
from lmjax.inference.texts import check_list
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.mesh import batch_sharding

_DEFAULT = RowConfig()


class Filling(NamedTuple):
    """A predicted token for a mask: its id, its text, and its probability."""

    id: int
    text: str
    probability: float


def mask_text(tokenizer: Vocabulary) -> str:
    """Returns the text of the mask token, such as [MASK]; raises FlagError if the tokenizer has none."""
    _ = tokenizer.mask_id
    return tokenizer.names["mask_token"] if isinstance(tokenizer, FastTokenizer) else MASK


def spaced(tokenizer: Vocabulary) -> bool:
    """Returns whether the tokens of words include the space before the word."""
    return any(len(piece) > 1 and piece.startswith(b" ") for piece in tokenizer.pieces)


def encode_masked(tokenizer: Vocabulary, text: str) -> list[int]:
    """Returns the ids of a text, with the mask id where the text has the mask token.

    A tokenizer that lmjax trained never encodes text as a mask, so the parts between masks are encoded separately. If
    the tokens of words include the space before them, a space before a mask is taken as part of the masked token.
    """
    mask = mask_text(tokenizer)
    if isinstance(tokenizer, FastTokenizer):
        return tokenizer.encode(text)
    parts = text.split(mask)
    if spaced(tokenizer):
        parts = [part.removesuffix(" ") for part in parts[:-1]] + parts[-1:]
    first, *others = tokenizer.encode_batch(parts)
    return [*first, *(i for part in others for i in (tokenizer.mask_id, *part))]


def ids_of(loaded: LoadedModel, text: str, name: str) -> list[int]:
    """Returns the ids of a text as the model reads it alone, in which an encoder's text may have masks.

    Args:
        loaded: the model.
        text: what it reads.
        name: of the text in error messages.
    """
    if not loaded.config.family.causal and "mask" in loaded.tokenizer.role_ids and MASK in text:
        return loaded.prompts.around(encode_masked(loaded.tokenizer, text))
    return list(loaded.ids(text, name))


@functools.partial(jax.jit, static_argnames=("model", "count", "num_ids"))
def _likeliest(
    model: LanguageModel, params: PyTree, fields: dict[str, jax.Array], at: jax.Array, count: int, num_ids: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the probabilities and ids of the likeliest tokens at the positions `at`, `[rows, predictions, count]`.

    The softmax runs over all rows of the model's vocabulary; only the first `num_ids` of them can be picked.
    """
    logits = model.apply({"params": params}, states(model, params, fields, at), method="logits")
    shares = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return replicated(jax.lax.top_k(jnp.where(jnp.arange(shares.shape[-1]) < num_ids, shares, -1.0), count))


def fill_mask(
    loaded: LoadedModel, texts: Sequence[str | Sequence[int]], top_k: int = 5, config: RowConfig = _DEFAULT
) -> list[list[list[Filling]]]:
    """Returns for every text, for every mask in it, the `top_k` likeliest tokens, the likeliest first.

    Several masks of a text are predicted independently: all of them are masked in the model's input.

    Args:
        loaded: an encoder with a masked_lm head.
        texts: each contains the mask token, such as "The [MASK] sleeps."; or ids, which are used as they are.
        top_k: tokens for each mask.
        config: how much is computed at a time.

    Raises:
        FlagError: another kind of model, a text without a mask, or a text that is too long.
    """
    check_arguments(loaded, config, RowConfig)
    check_list(texts, "texts", "texts")
    if (family := loaded.config.family).causal:
        raise FlagError(f"only an encoder fills masks, and this is a {family.label}; use generate instead")
    loaded.check_vocabulary()
    tokenizer, pieces = loaded.tokenizer, []
    if not 1 <= top_k <= tokenizer.vocab_size:
        raise FlagError(f"top_k={top_k}: must be from 1 to {tokenizer.vocab_size}, the number of the tokenizer's ids")
    for i, text in enumerate(texts):
        row = loaded.prompts.around(encode_masked(tokenizer, text)) if isinstance(text, str) else list(text)
        at = [place for place, token in enumerate(row) if token == tokenizer.mask_id]
        if not at:
            raise FlagError(
                f"texts[{i}]: {text[:80]!r} has no {mask_text(tokenizer)}; write it where a token is missing"
            )
        if len(row) > loaded.config.max_length:
            raise FlagError(
                f"texts[{i}]: {len(row)} tokens, but the model reads at most {loaded.config.max_length}; shorten it"
            )
        pieces.append(Piece(row, at, [0] * len(at)))
    found: list[list[list[Filling]]] = [[] for _ in texts]
    # Each count compiles a program, so there are only powers of two.
    count = min(max(8, 1 << (top_k - 1).bit_length()), tokenizer.vocab_size)
    for batch in batches(loaded, pieces, config):
        given = jax.device_put((batch.fields, batch.at), batch_sharding(loaded.mesh))
        with loaded.on_devices():
            shares, ids = jax.device_get(_likeliest(loaded.model, loaded.params, *given, count, tokenizer.vocab_size))
        for i, row, start, end in batch.owners:
            found[i] = [
                _fillings(tokenizer, *of)
                for of in zip(ids[row, start:end, :top_k], shares[row, start:end, :top_k], strict=True)
            ]
    return found


def _fillings(tokenizer: Vocabulary, ids: np.ndarray, shares: np.ndarray) -> list[Filling]:
    """Returns the predictions for one mask, each with its text."""
    return [Filling(i, tokenizer.decode([i]), float(share)) for i, share in zip(ids.tolist(), shares, strict=True)]
