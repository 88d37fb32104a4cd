"""What stands in training data: lengths, copies, personal data, and texts of an evaluation set."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.audit.bench import means
from lmjax.audit.contamination import overlap
from lmjax.audit.continuations import mask
from lmjax.audit.duplicates import NGRAM, contamination, copies, near_duplicates, words
from lmjax.audit.findings import Finding, Section, findings_of
from lmjax.audit.languages import UNCLEAR, languages
from lmjax.audit.personal import KINDS, personal
from lmjax.data.sources import STDLIB, Unsplit, corpus_fingerprint
from lmjax.data.splits import is_held_out
from lmjax.evaluation.intervals import Measured

_LISTED = 10
# The most languages that are listed.
_LANGUAGES = 20


class Documents(NamedTuple):
    """The documents of a data set: their texts, and the groups by which the split tells them apart."""

    spec: str
    texts: Sequence[str]
    groups: Sequence[str]


def read(spec: str, documents: Iterator[Unsplit]) -> Documents:
    """Returns the documents that a reader yields."""
    found = list(documents)
    return Documents(spec, [each.text for each in found], [each.group for each in found])


def files(documents: Documents) -> list[tuple[str, str]]:
    """Returns what was read, with the first digits of its fingerprint."""
    return [] if documents.spec == STDLIB else [(documents.spec, corpus_fingerprint(documents.spec)[:16])]


def lengths(documents: Documents) -> Section:
    """Returns the statistics of lengths and of characters."""
    count = len(documents.texts)
    sizes = np.array([len(words(text)) for text in documents.texts])
    characters = collections.Counter()
    for text in documents.texts:
        characters.update("letters" if c.isalpha() else "digits" if c.isdigit() else "rest" for c in text if c > " ")
    total = max(1, characters.total())
    findings = [Finding("documents", Measured(count), count), Finding("words", Measured(int(sizes.sum())), count)]
    for name, share in (
        ("shortest", 0),
        ("5 % are below", 5),
        ("median", 50),
        ("95 % are below", 95),
        ("longest", 100),
    ):
        findings.append(Finding(f"words of a document: {name}", Measured(float(np.percentile(sizes, share))), count))
    for name in ("letters", "digits"):
        findings.append(Finding(f"{name}, % of visible characters", Measured(100 * characters[name] / total), count))
    return Section("Size", "Words are runs of letters and digits.", findings, files(documents))


def histogram(documents: Documents) -> tuple[list[int], list[str]]:
    """Returns the number of documents by their words, in ranges that double, and the names of the ranges."""
    sizes = np.array([max(1, len(words(text))) for text in documents.texts])
    ranges = np.bincount(np.log2(sizes).astype(int))
    return ranges.tolist(), ["1 word", *(f"{2**i:,} to {2 ** (i + 1) - 1:,} words" for i in range(1, len(ranges)))]


def repeats(documents: Documents, share: float, *, near: bool = False, threshold: float = 0.8) -> Section:
    """Returns how many documents are copies, and how many stand in the training and in the held-out part.

    Args:
        documents: the documents.
        share: that a run holds out by the hash of a document's group.
        near: whether near duplicates are looked for.
        threshold: the Jaccard similarity of near duplicates.
    """
    texts, count = documents.texts, len(documents.texts)
    sides = [is_held_out(group, share) for group in documents.groups]
    found = copies(texts, sides)
    findings = [
        Finding("exact copies of an earlier document", Measured(found.exact), count),
        Finding("largest set of exact copies", Measured(found.largest), count),
        Finding("texts of which a copy is trained on and one held out", Measured(found.apart), count),
        Finding("copies but for case, punctuation and white space", Measured(found.loose), count),
    ]
    note = f"A run with data.held_out={share} and data.split=hash has the training and the held-out part meant here."
    rows: list[tuple[str, ...]] = []
    if near:
        pairs = [p for p in near_duplicates(texts, threshold) if texts[p.first].strip() != texts[p.second].strip()]
        apart = sum(sides[p.first] != sides[p.second] for p in pairs)
        findings.append(Finding("pairs of near duplicates that are no exact copies", Measured(len(pairs)), count))
        findings.append(Finding("of these, one trained on and one held out", Measured(apart), count))
        note += f" Near duplicates share {threshold:.0%} of their runs of 5 words (Jaccard), found by MinHash."
        rows = [("similarity", "one", "other")]
        for pair in sorted(pairs, key=lambda p: -p.similarity)[:_LISTED]:
            rows.append((f"{pair.similarity:.2f}", *(texts[i].strip()[:120] for i in pair[:2])))
    return Section("Duplicates", note, findings, (), rows, "Near duplicates")


def private(documents: Documents, show: bool = False) -> Section:
    """Returns how often patterns of personal data are found; what is found is masked unless `show` is given."""
    totals, holders, examples = collections.Counter(), collections.Counter(), []
    for text in documents.texts:
        found = list(personal(text))
        totals.update(each.kind for each in found)
        holders.update({each.kind for each in found})
        examples += found[: max(0, _LISTED - len(examples))]
    count = len(documents.texts)
    findings = [Finding(f"{kind}: found", Measured(totals[kind]), count) for kind in KINDS]
    findings += [Finding(f"{kind}: documents", Measured(holders[kind]), count) for kind in KINDS if totals[kind]]
    rows = [("kind", "text"), *((each.kind, each.text if show else mask(each.text, ())) for each in examples)]
    title = "Examples" if show else "Examples, masked (--show shows them)"
    return Section(
        "Personal data", "By patterns, which miss much and find some that is none.", findings, (), rows, title
    )


def spoken(documents: Documents) -> Section:
    """Returns how many documents, and how many of their words, are in each language.

    Raises:
        FlagError: py3langid is not installed.
    """
    found = np.array(languages(documents.texts))
    sizes = np.array([len(words(text)) for text in documents.texts])
    names, counts = np.unique(found, return_counts=True)
    order = [names[i] for i in np.argsort(-counts, kind="stable")]
    shown = order[:_LANGUAGES]
    made = means({f"{_language(name)}: documents, %": 100.0 * (found == name) for name in shown})
    findings = findings_of(made.measurement, None, made.counts)
    total = max(1, int(sizes.sum()))
    for name in shown:
        share = 100 * int(sizes[found == name].sum()) / total
        findings.append(Finding(f"{_language(name)}: words, %", Measured(share), len(found)))
    rest = len(order) - len(shown)
    note = (
        "By py3langid, from the first 10,000 characters of a document; unclear: no language has a probability of 1/2."
    )
    note += f" {rest} rarer languages are not listed." if rest else ""
    rows = [("language", "document")]
    for name in shown:
        first = int(np.flatnonzero(found == name)[0])
        rows.append((_language(name), " ".join(documents.texts[first].split())[:120]))
    return Section("Languages", note, findings, files(documents), rows, "The first document of each")


def _language(code: str) -> str:
    return "unclear" if code == UNCLEAR else code


def contaminated(documents: Documents, evaluation: Documents, size: int = NGRAM) -> Section:
    """Returns how much of an evaluation set stands in the data."""
    shares = contamination(evaluation.texts, documents.texts, size)
    return overlap(evaluation.texts, shares, size, files(evaluation))
