"""The log-likelihood of each token of a text, where a score is their sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.inference.loaded import LoadedModel
from lmjax.inference.score.rows import Piece, token_scores
from lmjax.inference.score.texts import Item, Reader, ScoreConfig
from lmjax.inference.texts import Text, check_list


class TokenScores(NamedTuple):
    """The tokens of a text.

    Attributes:
        ids: of the tokens, without those of the prompt format, `[tokens]`.
        log_likelihoods: float64 `[tokens]`, in nats.
    """

    ids: list[int]
    log_likelihoods: np.ndarray


def by_token(
    loaded: LoadedModel,
    texts: Sequence[Text],
    config: ScoreConfig | None = None,
    names: Sequence[str] | None = None,
) -> list[TokenScores]:
    """Returns the log-likelihoods of the tokens of texts, whose sums are the scores of `score.rolling`.

    An encoder masks one token at a time, also one that was trained to write by unmasking, whose `rolling` score is
    another one.

    Args:
        loaded: the model.
        texts: texts of any length, or ids.
        config: settings; None: the defaults.
        names: the names of the texts in error messages.

    Raises:
        FlagError: a model that predicts no tokens, an empty text, or an id outside the vocabulary.
    """
    config = ScoreConfig() if config is None else config
    check_list(texts, "texts", "texts")
    reader = Reader.of(dataclasses.replace(loaded, tasks={}), config)
    reader.check_windows()
    names = [f"texts[{i}]" for i in range(len(texts))] if names is None else names
    encoded = [each.continuation for each in reader.encode([Item("", text) for text in texts], names)]
    owners: list[int] = []

    def pieces() -> Iterator[Piece]:
        for i, ids in enumerate(encoded):
            for piece in reader.windows(ids):
                owners.append(i)
                yield piece

    found: list[list[float]] = [[] for _ in encoded]
    for k, (log_probs, _) in enumerate(token_scores(loaded, pieces(), config)):
        found[owners[k]].extend(log_probs.tolist())
    return [TokenScores(ids, np.asarray(own)) for ids, own in zip(encoded, found, strict=True)]
