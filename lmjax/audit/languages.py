"""The languages of documents, by py3langid: naive Bayes over byte n-grams, with a model in the package (140 languages).

Lui and Baldwin 2012, "langid.py: An Off-the-shelf Language Identification Tool". A language is an ISO 639-1 code, such
as `en`, or one of ISO 639-3 if there is none of two letters.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmjax.errors import FlagError
from lmjax.evaluation.intervals import required
from lmjax.nearest import nearest

# The code of ISO 639 for a text whose language is not clear: too short, of several, or none, such as code.
UNCLEAR = "und"
# The probability from which on a language is clear.
_CLEAR = 0.5
# Characters of a document that are read: more hardly change what is found.
_READ = 10_000


@functools.cache
def _identifier() -> Any:
    """Returns the identifier of py3langid; raises FlagError if it is not installed."""
    library = required("py3langid.langid", "audit")
    return library.LanguageIdentifier.from_model_file(library.MODEL_FILE, norm_probs=True, min_confidence=_CLEAR)


def languages(texts: Sequence[str]) -> list[str]:
    """Returns the language of each text; `UNCLEAR` if none has a probability of one half.

    Raises:
        FlagError: py3langid is not installed.
    """
    return [_identifier().classify(text[:_READ])[0] for text in texts]


def other_languages(wanted: Sequence[str], flag: str, texts: Sequence[str]) -> np.ndarray:
    """Returns 1 for each text in another language than these, or in an unclear one, else 0.

    Args:
        wanted: codes of languages.
        flag: that names them, for messages.
        texts: the texts.

    Raises:
        FlagError: py3langid does not know a language, or is not installed.
    """
    check_languages(wanted, flag)
    return np.array([float(found not in wanted) for found in languages(texts)])


def check_languages(wanted: Sequence[str], flag: str) -> None:
    """Raises FlagError if py3langid does not know one of these languages, or is not installed."""
    known = _identifier().labels
    for code in wanted:
        if code not in known:
            raise FlagError(
                f"{flag}={code}: no such language; {nearest(code, known) or 'give codes of ISO 639-1, such as en,de'}"
            )
