"""Rules that find texts: by words or regular expressions of a file, by a classifier's label, and by language."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from lmjax.audit.continuations import matches, read_patterns
from lmjax.audit.languages import check_languages, other_languages
from lmjax.audit.raters import Rating, label_rate
from lmjax.inference.loaded import LoadedModel


class Rule(NamedTuple):
    """Finds the texts with a rate of at least the threshold; `reason` says what these are."""

    reason: str
    rate: Rating
    threshold: float


def file_rule(kind: str, path: str, flag: str) -> Rule:
    """Returns the rule of a file.

    Args:
        kind: words, or patterns.
        path: of the file.
        flag: that names it.

    Raises:
        DataError: the file cannot be read, has no lines, or one is no regular expression.
    """
    return Rule(f"with one of the {kind}", matches(read_patterns(path, flag, words=kind == "words")), 1.0)


def model_rule(judge: LoadedModel, label: str, threshold: float, named: str) -> tuple[Rule, str]:
    """Returns the rule of a classifier, and its label.

    Args:
        judge: the classifier.
        label: of what is found; empty: its last one.
        threshold: the probability from which on a text is found.
        named: the flag and the place, for messages.

    Raises:
        FlagError: the model is no classifier, or it has no such label.
    """
    own, rate = label_rate(judge, label, named)
    return Rule(f"that are {own!r} to the classifier", rate, threshold), own


def language_rule(wanted: Sequence[str], flag: str) -> Rule:
    """Returns the rule that finds texts in other languages than these, or in an unclear one.

    Raises:
        FlagError: a language is unknown, or py3langid is not installed.
    """
    check_languages(wanted, flag)
    return Rule(f"not clearly in {' or '.join(wanted)}", functools.partial(other_languages, wanted, flag), 1.0)


def reasons(rules: Sequence[Rule], texts: Sequence[str]) -> list[str | None]:
    """Returns the reason of the first rule that finds each text; None: none does."""
    found: list[str | None] = [None] * len(texts)
    for rule in rules:
        left = [i for i, reason in enumerate(found) if reason is None]
        for i, rate in zip(left, rule.rate([texts[i] for i in left]) if left else (), strict=True):
            found[i] = rule.reason if rate >= rule.threshold else None
    return found
