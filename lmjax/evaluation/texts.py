"""Metrics of generated texts: BLEU and chrF by sacrebleu, ROUGE by rouge-score, exact match; and of likelihoods.

Scales are those of the libraries: BLEU and chrF go from 0 to 100, ROUGE and exact match from 0 to 1.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmjax.errors import DataError
from lmjax.evaluation.intervals import Measurement, check_examples, of_means, of_sums, ratio, required

References = Sequence[str] | Sequence[Sequence[str]]
_ROUGE = ("rouge1", "rouge2", "rougeL")


def bleu(
    references: References, predicted: Sequence[str], *, lowercase: bool = False, tokenize: str = "13a"
) -> Measurement:
    """Returns `bleu`, or `bleu_lowercase`: sacrebleu's corpus BLEU (Post 2018, arXiv:1804.08771) with its signature.

    Args:
        references: of each example, a text or several.
        predicted: a text for each example, not tokenised.
        lowercase: whether case is ignored.
        tokenize: sacrebleu's tokenizer; 13a is WMT's standard.

    Raises:
        DataError: no examples, not as many predictions, or an example without a reference.
    """
    metric = required("sacrebleu.metrics").BLEU(lowercase=lowercase, tokenize=tokenize)
    return _sacrebleu("bleu_lowercase" if lowercase else "bleu", metric, references, predicted)


def chrf(references: References, predicted: Sequence[str], *, word_order: int = 0) -> Measurement:
    """Returns `chrf`, or with word n-grams `chrf++`: sacrebleu's corpus chrF (Popovic 2015) with its signature.

    Args:
        references: of each example, a text or several.
        predicted: a text for each example.
        word_order: length of the longest word n-grams; 0: chrF, 2: chrF++ (Popovic 2017).

    Raises:
        DataError: as of `bleu`.
    """
    metric = required("sacrebleu.metrics").CHRF(word_order=word_order)
    return _sacrebleu(f"chrf{'+' * word_order}", metric, references, predicted)


def _sacrebleu(name: str, metric: Any, references: References, predicted: Sequence[str]) -> Measurement:
    """Returns a metric of sacrebleu, whose statistics of the examples are added up for each draw.

    The two methods are those that sacrebleu's significance tests call; they are not documented, so the tests compare
    the value with that of `corpus_score`.
    """
    texts = _references(references, predicted)
    most = max(map(len, texts))
    columns = [[each[i] if i < len(each) else None for each in texts] for i in range(most)]
    rows = np.array(metric._extract_corpus_statistics(list(predicted), columns))

    def score(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.array([metric._compute_score_from_stats([int(x) for x in row]).score for row in sums])}

    return dataclasses.replace(of_sums(rows, score), signatures={name: str(metric.get_signature())})


def rouge(references: References, predicted: Sequence[str], *, stemmer: bool = False) -> Measurement:
    """Returns `rouge1`, `rouge2` and `rougeL`: mean F-measures (Lin 2004), the best over the references of an example.

    Args:
        references: of each example, a text or several.
        predicted: a text for each example.
        stemmer: whether words are compared by Porter's stems, for English.

    Raises:
        DataError: as of `bleu`.
    """
    texts = _references(references, predicted)
    scorer = required("rouge_score.rouge_scorer").RougeScorer(_ROUGE, use_stemmer=stemmer)
    found = [scorer.score_multi(each, text) for each, text in zip(texts, predicted, strict=True)]
    means = of_means({name: [scores[name].fmeasure for scores in found] for name in _ROUGE})
    signature = f"stemmer:{'yes' if stemmer else 'no'}|rouge-score:{importlib.metadata.version('rouge-score')}"
    return dataclasses.replace(means, signatures=dict.fromkeys(_ROUGE, signature))


def exact_match(references: References, predicted: Sequence[str]) -> Measurement:
    """Returns `exact_match`: the share of texts equal to a reference, but for white space around them.

    Raises:
        DataError: as of `bleu`.
    """
    texts = _references(references, predicted)
    right = [text.strip() in [each.strip() for each in of] for of, text in zip(texts, predicted, strict=True)]
    return of_means({"exact_match": right})


def likelihood(nats: Sequence[float], tokens: Sequence[int], sizes: Sequence[int]) -> Measurement:
    """Returns `nats_per_token`, `perplexity` and `bits_per_byte` over all texts; intervals are over texts.

    Args:
        nats: the negative log-likelihood of each text.
        tokens: of each text.
        sizes: bytes of each text.

    Raises:
        DataError: no texts, or not as many of each.
    """
    check_examples(nats, tokens, sizes)
    rows = np.stack([np.asarray(column, np.float64) for column in (nats, tokens, sizes)], axis=1)

    def of(sums: np.ndarray) -> dict[str, np.ndarray]:
        per_token = ratio(sums[:, 0], sums[:, 1])
        return {
            "nats_per_token": per_token,
            "perplexity": np.exp(np.minimum(per_token, 700.0)),
            "bits_per_byte": ratio(sums[:, 0], sums[:, 2]) / math.log(2),
        }

    return of_sums(rows, of)


def _references(references: References, predicted: Sequence[str]) -> list[list[str]]:
    """Returns the references of each example as a list; raises DataError if there are none."""
    check_examples(references, predicted)
    found = [[each] if isinstance(each, str) else list(each) for each in references]
    for i, each in enumerate(found):
        if not each:
            raise DataError(f"example {i} has no reference; give at least one text")
    return found
