"""Whether texts of a model repeat its training data: spans of tokens, found by hashes of all spans of the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.audit.bench import means
from lmjax.audit.continuations import Written
from lmjax.audit.findings import Section, findings_of
from lmjax.evaluation.intervals import Measurement

# Odd multipliers of the polynomial hash; arithmetic is modulo 2**64. The second hash confirms the first.
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)


class Repeated(NamedTuple):
    """The spans of a text, and how many of them stand in the training data."""

    spans: int
    found: int


def hashes(tokens: Sequence[int] | np.ndarray, span: int) -> np.ndarray:
    """Returns a hash of each span of tokens, uint64 `[max(0, tokens - span + 1), 2]`."""
    ids = np.asarray(tokens, np.uint64)
    count = len(ids) - span + 1
    if count < 1:
        return np.zeros((0, 2), np.uint64)
    made = np.zeros((count, 2), np.uint64)
    for k in range(span):
        for column, multiplier in enumerate(_MULTIPLIERS):
            made[:, column] = made[:, column] * np.uint64(multiplier) + ids[k : k + count] + np.uint64(1)
    # The lowest bits of a polynomial modulo 2**64 depend on few bits of the tokens.
    return made ^ (made >> np.uint64(29))


def repeated(texts: Sequence[Sequence[int]], documents: Iterable[np.ndarray], span: int) -> list[Repeated]:
    """Returns for each text how many of its spans stand in a document of the training data.

    Only the hashes of the texts are kept in memory, and the documents are read once. Two different spans have the same
    two 64-bit hashes with a probability that can be ignored.

    Args:
        texts: the ids of each text.
        documents: the ids of each document.
        span: tokens of a span.
    """
    own = [hashes(text, span) for text in texts]
    wanted = np.unique(np.concatenate([*own, np.zeros((0, 2), np.uint64)]), axis=0)
    there = np.zeros(len(wanted), bool)
    for document in documents if len(wanted) else ():
        made = hashes(document, span)
        places = np.minimum(np.searchsorted(wanted[:, 0], made[:, 0]), len(wanted) - 1)
        there[places[(wanted[places] == made).all(axis=1)]] = True
    return [Repeated(len(x), int(there[np.searchsorted(wanted[:, 0], x[:, 0])].sum()) if len(x) else 0) for x in own]


def section(
    written: Sequence[Written], found: Sequence[Repeated], span: int, against: Sequence[Repeated] | None = None
) -> Section:
    """Returns how much of what a model wrote stands in its training data.

    Args:
        written: the texts of the prompts.
        found: of each text, in the order of the prompts.
        span: tokens of a span.
        against: of each text of another model, in its own training data; None: there is none.
    """
    prompts, size = len(written), len(written[0].texts)

    def measured(of: Sequence[Repeated]) -> Measurement:
        spans = np.array([[x.spans, x.found] for x in of], float).reshape(prompts, size, 2)
        share = np.divide(spans[..., 1], spans[..., 0], out=np.zeros((prompts, size)), where=spans[..., 0] > 0)
        return means(
            {
                "spans in the data, %": 100 * share.mean(axis=1),
                "texts with a span in the data, %": 100 * (spans[..., 1] > 0).mean(axis=1),
                "prompts with one, %": 100 * (spans[..., 1] > 0).any(axis=1),
            }
        ).measurement

    first = measured(found)
    findings = findings_of(first, None if against is None else measured(against), dict.fromkeys(first.values, prompts))
    texts = [text for each in written for text in each.texts]
    most = sorted(((x.found, i) for i, x in enumerate(found) if x.found), reverse=True)[:10]
    rows = [("spans found", "text"), *((str(count), texts[i][:200]) for count, i in most)]
    note = (
        f"A span is {span} tokens in a row. Spans of what the model wrote, without its prompt, are looked up among all "
        "spans of all training documents by two 64-bit hashes; the bootstrap draws prompts."
    )
    return Section("Verbatim memorisation", note, findings, (), rows, "Texts with most spans in the training data")
