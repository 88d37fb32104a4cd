"""Leaves copies, and what a filter finds, out of the training data of a run; the held-out data stays as it is."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.audit.duplicates import NearIndex, Sketch, digest, loose
from lmjax.audit.filters import Rule, file_rule, language_rule, model_rule, reasons
from lmjax.audit.findings import fingerprint
from lmjax.data.cleaning import Dedup, FilterConfig
from lmjax.data.documents import Document
from lmjax.data.sources import DataConfig
from lmjax.data.splits import Splits
from lmjax.errors import ConfigMismatchError, DataError
from lmjax.interop.shards import read_json
from lmjax.phases import phase
from lmjax.strict_json import write_json

# The file in a workdir with what was left out of its training data.
REMOVED = "removed.json"
# Documents that a filter reads together.
_CHUNK = 1024
# Why a document is left out.
HELD_OUT, EARLIER = "copies of a held-out document", "copies of an earlier document"


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """What is left out of the training sets of a run.

    Attributes:
        splits: the training and the evaluation sets as they are.
        rules: of the filter.
        dedup: which copies are left out.
        threshold: the similarity of near copies.
        parts: everything that decides what is left out, for the fingerprint of the data.
        cache: the folder in which the counts are kept beside the stores.
    """

    splits: Splits
    rules: tuple[Rule, ...]
    dedup: Dedup
    threshold: float
    parts: Mapping[str, Any]
    cache: pathlib.Path

    def cleaned(self) -> Splits:
        """Returns the sets, of which the training sets lack what is left out; nothing is read before they are."""
        return self.splits._replace(
            train={name: functools.partial(self._read, name, read) for name, read in self.splits.train.items()}
        )

    def removed(self) -> dict[str, dict[str, Any]]:
        """Returns the counts of each training set: its documents, and by reason those that are left out.

        `documents` also has a digest of which they are, since a classifier may decide otherwise on another machine.
        """
        path = self.cache / f"removed-{hashlib.sha256(json.dumps(self.parts).encode()).hexdigest()[:32]}.json"
        if "_found" in self.__dict__ or not path.exists():
            write_json(path, self._found[1])
        return read_json(path)

    def _read(self, name: str, read: Callable[[], Iterator[Document]]) -> Iterator[Document]:
        return itertools.compress(read(), self._found[0][name])

    @functools.cached_property
    def _found(self) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """Whether each document of each training set is kept, and the counts."""
        seen = _Seen(self.dedup, self.threshold)
        with phase("looking for what is left out of the training data"):
            for read in self.splits.evals.values() if self.dedup != "none" else ():
                for document in read():
                    seen.add(document.text, HELD_OUT)
            kept, counts = {}, {}
            for name, read in self.splits.train.items():
                found = [reason for texts in _chunks(read()) for reason in self._reasons(texts, seen)]
                kept[name] = np.array([reason is None for reason in found], bool)
                own = collections.Counter(reason for reason in found if reason is not None)
                if not kept[name].any():
                    why = ", ".join(f"{count:,} {reason}" for reason, count in own.items())
                    raise DataError(
                        f"--config.data.dedup and filter leave none of the {len(found):,} training documents of "
                        f"{name} ({why}); take a weaker filter, or other data"
                    )
                names = (*(rule.reason for rule in self.rules), HELD_OUT, EARLIER)
                bits = hashlib.sha256(np.packbits(kept[name]).tobytes()).hexdigest()[:16]
                counts[name] = {
                    "documents": len(found),
                    "left out": {n: own[n] for n in names if own[n]},
                    "kept": bits,
                }
        return kept, counts

    def _reasons(self, texts: Sequence[str], seen: _Seen) -> list[str | None]:
        """Returns why each text is left out; None: it is not."""
        found = reasons(self.rules, texts)
        # Only what is kept makes a later document a copy.
        return [seen.copy_of(text) if why is None else why for text, why in zip(texts, found, strict=True)]


class _Seen:
    """The documents that are held out, and those that were kept."""

    def __init__(self, dedup: Dedup, threshold: float):
        """Takes which documents are copies."""
        self._dedup, self._keys, self._sides = dedup, {}, []
        self._near = NearIndex(threshold) if dedup == "near" else None

    def copy_of(self, text: str) -> str | None:
        """Returns the side of a document of which the text is a copy; None: it is of none, and is added as EARLIER."""
        if self._dedup == "none":
            return None
        if (key := self._key(text)) in self._keys:
            return self._keys[key]
        sketched = None
        if self._near is not None:
            sketched = self._near.sketch(text)
            if similar := self._near.similar(sketched):
                return self._sides[similar[0][0]]
        self.add(text, EARLIER, sketched)
        return None

    def add(self, text: str, side: str, sketched: Sketch | None = None) -> None:
        """Adds a document that may be a copy of another one.

        Args:
            text: of the document.
            side: HELD_OUT or EARLIER.
            sketched: the text in the index of near copies, if it was computed.
        """
        self._keys.setdefault(self._key(text), side)
        if self._near is not None:
            self._near.add(sketched or self._near.sketch(text))
            self._sides.append(side)

    def _key(self, text: str) -> int:
        return digest(text.strip()) if self._dedup == "exact" else loose(text)


def cleaning(data: DataConfig, splits: Splits, prints: Mapping[str, str]) -> Cleaning | None:
    """Returns what is left out of the training sets; None: nothing is.

    Args:
        data: the config of the data.
        splits: the training and the evaluation sets.
        prints: the fingerprints of the training sets.

    Raises:
        DataError: a file of the filter cannot be read.
        FlagError: its model is no classifier, has no such label, or a library is not installed.
    """
    if data.dedup == "none" and not data.filter.given:
        return None
    if data.dedup == "near":
        NearIndex(data.dedup_threshold)  # says what must be installed before any data is read
    parts: dict[str, Any] = {"dedup": data.dedup, "sets": dict(prints)}
    parts |= {"threshold": data.dedup_threshold} if data.dedup == "near" else {}
    rules, read = _rules(data.filter)
    return Cleaning(splits, rules, data.dedup, data.dedup_threshold, parts | read, pathlib.Path(data.cache_path))


def _rules(config: FilterConfig) -> tuple[tuple[Rule, ...], dict[str, Any]]:
    """Returns the rules of a filter, and the fingerprints of what they are made from."""
    rules, parts = [], {}
    for name in ("words", "patterns"):
        if path := getattr(config, name):
            rules.append(file_rule(name, path, f"config.data.filter.{name}"))
            parts[name] = fingerprint(path)
    if config.model:
        # These modules open runs, whose data this module makes.
        from lmjax.runs.references import digest_of
        from lmjax.runs.trained import load_model

        with phase(f"loading {config.model}"):
            judge = load_model(config.model)
        named = f"--config.data.filter.model={config.model}" + (f", label={config.label}" if config.label else "")
        rule, label = model_rule(judge, config.label, config.threshold, named)
        rules.append(rule)
        parts["model"] = [digest_of(judge.params), judge.tokenizer.fingerprint, label, config.threshold]
    if config.languages:
        rules.append(language_rule(config.languages, "config.data.filter.languages"))
        parts["languages"] = [*config.languages, importlib.metadata.version("py3langid")]
    return tuple(rules), parts


def check_removed(workdir: pathlib.Path, removed: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ConfigMismatchError if other documents were left out when the workdir was begun."""
    path = workdir / REMOVED
    if path.exists() and (known := read_json(path)) != removed:
        changed = [name for name in removed if known.get(name) != removed[name]]
        raise ConfigMismatchError(
            f"--workdir={workdir} was trained on other data: the classifier of --config.data.filter.model leaves other "
            f"documents of {', '.join(changed)} out on this machine; copy the stores of the first one, or use another "
            "--workdir"
        )


def told(removed: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a line for each training set that says what is left out of it."""
    lines = []
    for name, own in removed.items():
        total = own["documents"]
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in own["left out"].items()) or "nothing"
        lines.append(f"{name}: left out of {total:,} training documents: {reasons}")
    return lines


def _chunks(documents: Iterator[Document]) -> Iterator[list[str]]:
    while chunk := [document.text for document in itertools.islice(documents, _CHUNK)]:
        yield chunk
