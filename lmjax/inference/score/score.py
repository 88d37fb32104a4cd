"""Likelihoods of texts under models of all three families, computed by forward passes over packed rows.

A decoder gives log p(continuation | context), and so does an encoder-decoder, whose encoder reads the context. An
encoder gives a pseudo-log-likelihood (Salazar et al. 2020, arXiv:1910.14659, section 2.1): the sum of each token's
log-probability where that token is masked and all others are visible. An encoder that was trained to write by unmasking
gives a lower bound on log p(continuation | context), so that nats per token and perplexity are upper bounds; it is
exact for a continuation of a few tokens, and otherwise estimated from random masks (`lmjax.inference.score.masks`).

If a model reads context and continuation as one text, the joint text is tokenised, and the continuation's tokens are
those after the tokens of the context; white space at the end of the context counts as part of the continuation.
lm-evaluation-harness does the same. If the joint text does not begin with the tokens of the context, because a token
spans both, lm-evaluation-harness scores only a part of the continuation; here the two are then encoded separately, and
`Score.apart` is True. If other ids separate the two (the two sides of an encoder-decoder, or a decoder that was trained
on sources and targets), each is always tokenised by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.score.rows import Piece, token_scores
from lmjax.inference.score.texts import Item, Reader, ScoreConfig, Text, as_items
from lmjax.inference.texts import check_list

DEFAULT = ScoreConfig()


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of a continuation.

    Attributes:
        log_likelihood: in nats; for an encoder the pseudo-log-likelihood, or the lower bound.
        tokens: the number of predicted tokens.
        greedy: whether greedy decoding would choose every token: the likeliest id of its position, or the lowest of
            equally likely ids. For the bound: whether every prediction of every set of masks is such an id.
        bytes: UTF-8 bytes of the continuation; if it was given as ids, the bytes of their tokens.
        apart: whether context and continuation, which the model reads as one text, were encoded separately.
    """

    log_likelihood: float
    tokens: int
    greedy: bool
    bytes: int
    apart: bool = False


class Question(NamedTuple):
    """A context, the continuations to choose from, and the index of the right one, from 0."""

    context: Text
    choices: Sequence[Text]
    answer: int


def score(
    loaded: LoadedModel,
    items: Sequence[Item],
    config: ScoreConfig = DEFAULT,
    names: Sequence[str] | None = None,
) -> list[Score]:
    """Returns a score for every item; it does not depend on the batch, on other texts of a row or on padding.

    Args:
        loaded: the model.
        items: contexts and continuations.
        config: settings.
        names: the names of the items in error messages, such as a file and a line; None: items[0] and so on.

    Raises:
        FlagError: a model that predicts no tokens, an empty or too long item, or an id outside the vocabulary.
    """
    reader = Reader.of(loaded, config)
    check_list(items, "items", "pairs of context and continuation")
    names = _names("items", len(items), names)
    items = as_items(items, names)
    encoded = [reader.fitted(*of) for of in zip(reader.encode(items, names), names, strict=True)]
    sizes = [_bytes(loaded, item.continuation) for item in items]
    scores = _scores(loaded, map(reader.pieces, encoded), sizes, config)
    return [dataclasses.replace(s, apart=of.apart) for s, of in zip(scores, encoded, strict=True)]


def rolling(
    loaded: LoadedModel,
    texts: Sequence[Text],
    config: ScoreConfig = DEFAULT,
    names: Sequence[str] | None = None,
) -> list[Score]:
    """Returns a score for every text of any length; each of its tokens is predicted once.

    A text that is too long for one pass is split into windows. Each window predicts the next `config.stride` tokens, or
    as many as fit after one token of context. The last window is extended to the left until it is full, as in
    `loglikelihood_rolling` of lm-evaluation-harness. An encoder-decoder's encoder reads the empty text; an encoder
    masks each token inside its window.

    Args:
        loaded: the model.
        texts: texts, or ids.
        config: settings.
        names: the names of the texts in error messages.

    Raises:
        FlagError: a model that predicts no tokens, an empty text, or an id outside the vocabulary.
    """
    reader = Reader.of(loaded, config)
    reader.check_windows()
    check_list(texts, "texts", "texts")
    encoded = reader.encode([Item("", text) for text in texts], _names("texts", len(texts), names))
    pieces = (reader.windows(of.continuation) for of in encoded)
    return _scores(loaded, pieces, [_bytes(loaded, text) for text in texts], config)


def summary(scores: Sequence[Score]) -> dict[str, float]:
    """Returns `nats_per_token`, `perplexity`, `bits_per_byte`, `tokens` and `bytes` over all texts."""
    nats = -math.fsum(s.log_likelihood for s in scores)
    tokens, size = sum(s.tokens for s in scores), sum(s.bytes for s in scores)
    return {
        "nats_per_token": nats / max(tokens, 1),
        "perplexity": math.exp(min(nats / max(tokens, 1), 700.0)),
        "bits_per_byte": nats / math.log(2) / max(size, 1),
        "tokens": tokens,
        "bytes": size,
    }


def perplexity(loaded: LoadedModel, texts: Sequence[Text], config: ScoreConfig = DEFAULT) -> dict[str, float]:
    """Returns the `summary` of texts of any length, scored by `rolling`.

    For an encoder they are computed from pseudo-log-likelihoods: the pseudo-perplexity of Salazar et al. 2020,
    section 2.3, and so on.
    """
    check_list(texts, "texts", "texts")
    if not texts:
        raise FlagError("no texts; give at least one")
    return summary(rolling(loaded, texts, config))


def minimal_pairs(
    loaded: LoadedModel,
    pairs: Sequence[tuple[Text, Text]],
    config: ScoreConfig = DEFAULT,
    names: Sequence[str] | None = None,
) -> dict[str, float]:
    """Returns `accuracy`, the share of pairs whose good text is likelier than its bad one, and the number of `pairs`.

    Warstadt et al. 2020, arXiv:1912.00582, section 4.1. A pair of two equally likely texts counts one half, the
    expected accuracy of a guess.
    """
    right = pairs_right(loaded, pairs, config, names)
    return {"accuracy": sum(right) / len(right), "pairs": len(right)}


def pairs_right(
    loaded: LoadedModel,
    pairs: Sequence[tuple[Text, Text]],
    config: ScoreConfig = DEFAULT,
    names: Sequence[str] | None = None,
) -> list[float]:
    """Returns what each pair counts in the accuracy of `minimal_pairs`: 0, 1/2 or 1."""
    if not pairs:
        raise FlagError("no pairs; give at least one (good, bad)")
    names = [name for name in _names("pairs", len(pairs), names) for _ in range(2)]
    scores = score(loaded, [Item("", text) for pair in pairs for text in pair], config, names)
    found = [s.log_likelihood for s in scores]
    return [_chance(pair, 0) for pair in zip(found[::2], found[1::2], strict=True)]


def multiple_choice(
    loaded: LoadedModel,
    questions: Sequence[Question],
    config: ScoreConfig = DEFAULT,
    names: Sequence[str] | None = None,
) -> dict[str, float]:
    """Returns `accuracy`, `accuracy_per_byte`, and the numbers of `questions` and of choices encoded `apart`.

    The model's answer is the choice with the highest log-likelihood, or log-likelihood per byte (Brown et al. 2020,
    arXiv:2005.14165, section 2.4, which divides by tokens). If the right answer is one of n equally likely best
    choices, it counts 1/n, so that the order of the choices does not matter. Context and choice are joined without a
    separator: a space between them must be part of one of the two.
    """
    right, apart = choices_right(loaded, questions, config, names)
    return {name: sum(of) / len(of) for name, of in right.items()} | {"questions": len(questions), "apart": apart}


def choices_right(
    loaded: LoadedModel,
    questions: Sequence[Question],
    config: ScoreConfig = DEFAULT,
    names: Sequence[str] | None = None,
) -> tuple[dict[str, list[float]], int]:
    """Returns what each question counts in the accuracies of `multiple_choice`, and the choices encoded apart."""
    if not questions:
        raise FlagError("no questions; give at least one (context, choices, answer)")
    names = _names("questions", len(questions), names)
    for name, question in zip(names, questions, strict=True):
        if not 0 <= question.answer < len(question.choices):
            raise FlagError(
                f"{name}: the answer {question.answer} is none of {len(question.choices)} choices, counted from 0"
            )
    items = [Item(q.context, choice) for q in questions for choice in q.choices]
    names = [name for name, q in zip(names, questions, strict=True) for _ in q.choices]
    scored = score(loaded, items, config, names)
    found = iter(scored)
    right: dict[str, list[float]] = {"accuracy": [], "accuracy_per_byte": []}
    for question in questions:
        scores = [next(found) for _ in question.choices]
        plain = [s.log_likelihood for s in scores]
        per_byte = [s.log_likelihood / max(s.bytes, 1) for s in scores]
        right["accuracy"].append(_chance(plain, question.answer))
        right["accuracy_per_byte"].append(_chance(per_byte, question.answer))
    return right, sum(s.apart for s in scored)


def _chance(likelihoods: Sequence[float], answer: int) -> float:
    """Returns 1/n if `answer` is one of the n likeliest choices, else 0."""
    best = max(likelihoods)
    return likelihoods.count(best) ** -1 if likelihoods[answer] == best else 0.0


def _names(kind: str, count: int, given: Sequence[str] | None) -> Sequence[str]:
    """Returns the names of `count` texts in error messages."""
    return [f"{kind}[{i}]" for i in range(count)] if given is None else given


def _bytes(loaded: LoadedModel, text: Text) -> int:
    """Returns the number of UTF-8 bytes of a text, or of the tokens of ids."""
    if isinstance(text, str):
        return len(text.encode())
    known = loaded.tokenizer.token_bytes
    return sum(int(known[i]) for i in text if i < len(known))


def _scores(
    loaded: LoadedModel, pieces: Iterable[Iterable[Piece]], sizes: Sequence[int], config: ScoreConfig
) -> list[Score]:
    """Returns a score for each of several texts.

    Args:
        loaded: the model.
        pieces: the pieces of each text, made lazily.
        sizes: bytes of each text.
        config: settings.
    """
    texts = list(zip(pieces, sizes, strict=True))
    return [Score(*of) for of in loaded.each(texts, functools.partial(_sums, loaded, config))]


def _sums(
    loaded: LoadedModel, config: ScoreConfig, texts: Sequence[tuple[Iterable[Piece], int]]
) -> list[tuple[float, int, bool, int]]:
    """Returns the fields of `Score` for texts, given as their pieces and bytes."""
    owners: list[tuple[int, float]] = []

    def everything() -> Iterator[Piece]:
        for i, (own, _) in enumerate(texts):
            for piece in own:
                owners.append((i, piece.factor))
                yield piece

    nats, tokens, greedy = [0.0] * len(texts), [0.0] * len(texts), [True] * len(texts)
    for k, (log_probs, best) in enumerate(token_scores(loaded, everything(), config)):
        i, factor = owners[k]
        nats[i] += factor * float(log_probs.sum(dtype="float64"))
        # Factors make up for tokens that are predicted several times.
        tokens[i] += factor * len(log_probs)
        greedy[i] &= bool(best.all())
    return list(zip(nats, map(round, tokens), greedy, (size for _, size in texts), strict=True))
