"""Exact match and F1 of extracted answers, as the evaluation scripts of SQuAD 1.1 and 2.0 define them.

Rajpurkar et al. 2016 (arXiv:1606.05250), section 6.1, and Rajpurkar et al. 2018 (arXiv:1806.03822), section 5.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence

import numpy as np

from lmjax.evaluation.intervals import Measurement, check_examples, of_sums, ratio

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """Returns an answer in lower case, without ASCII punctuation, English articles and superfluous white space."""
    return " ".join(_ARTICLE.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split())


def answer_f1(gold: str, predicted: str) -> float:
    """Returns the F1 of the words that two answers share; if one is empty after normalisation, whether both are."""
    one, other = normalised(gold).split(), normalised(predicted).split()
    if not one or not other:
        return float(one == other)
    shared = (collections.Counter(one) & collections.Counter(other)).total()
    return 2 * shared / (len(one) + len(other))


def squad(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> Measurement:
    """Returns `exact_match` and `f1`, the best over the gold answers of a question, as means from 0 to 1.

    If some questions have no answer, as in SQuAD 2.0, both are also given for the two sorts of questions: "f1 answer"
    and "f1 no answer".

    Args:
        gold: the right answers of each question; none, or only empty ones: the question has no answer.
        predicted: an answer for each question; empty: none.

    Raises:
        DataError: no questions, or not as many predictions.
    """
    check_examples(gold, predicted)
    answers = [[each for each in texts if normalised(each)] or [""] for texts in gold]
    pairs = list(zip(answers, predicted, strict=True))
    exact = [max(normalised(text) == normalised(found) for text in texts) for texts, found in pairs]
    f1 = [max(answer_f1(text, found) for text in texts) for texts, found in pairs]
    answerable = np.array([texts != [""] for texts in answers])
    parts = {"": np.ones_like(answerable)}
    if not answerable.all():
        parts |= {name: of for name, of in ((" answer", answerable), (" no answer", ~answerable)) if of.any()}
    rows = np.stack([part * np.array(of, float) for part in parts.values() for of in (part, exact, f1)], axis=1)

    def means(sums: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for i, name in enumerate(parts):
            count, exact, f1 = sums[:, 3 * i : 3 * i + 3].T
            found |= {f"exact_match{name}": ratio(exact, count), f"f1{name}": ratio(f1, count)}
        return found

    return of_sums(rows, means)
