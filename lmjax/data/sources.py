"""Documents from files and from the embedded corpus, and their split into training and held-out ones.

| name ends in (also with .gz) | documents |
|---|---|
| .jsonl, .json | one JSON object a line, with `text`, or with `source` and `target` |
| .csv, .tsv | a header with the column `text`, or `source` and `target`; quotes mean nothing in .tsv |
| anything else | text: several files are a document each; one is split at blank lines (whole with `split="tail"`) |

Everything is UTF-8, with or without a byte order mark; CRLF is read as LF. Reading is streamed: what is held in memory
is one line, or one document of text, and both are bounded.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import pydantic

from lmjax.data import files, stdlib
from lmjax.data.documents import Document
from lmjax.data.sentences import split_sentences
from lmjax.errors import DataError, FlagError
from lmjax.schema import Schema

STDLIB = "stdlib"


class EvalSet(Schema):
    """A named evaluation set: its metrics are `eval/NAME/...`."""

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9_.-]+$")
    path: str


class DataConfig(Schema):
    """What is read, how it is split, and how it reaches the training step.

    `held_out` and `split` divide `train` where `eval` names no sets of its own. `split="hash"` keeps whole documents
    together; `split="tail"` cuts the end off each text, so that one long text can be split, as nanoGPT does.
    """

    train: str = pydantic.Field(STDLIB, min_length=1, description="stdlib, or a path or glob of files")
    eval: tuple[EvalSet, ...] = ()
    held_out: float = pydantic.Field(0.05, ge=0.0, le=0.5)
    split: Literal["hash", "tail"] = "hash"
    bad_records: Literal["error", "skip"] = "error"
    workers: int = pydantic.Field(0, ge=0, description="processes that make examples; 0: threads of this one")
    prefetch: int = pydantic.Field(4, gt=0, description="batches made ahead")
    cache_dir: str = pydantic.Field("", description="empty: $LMJAX_CACHE, or ~/.cache/lmjax")

    @pydantic.model_validator(mode="after")
    def _names_differ(self):
        names = [item.name for item in self.eval]
        if len(names) != len(set(names)):
            raise ValueError(f"two evaluation sets have one name: {names}")
        return self

    @property
    def cache_path(self) -> str:
        """The folder of tokenised stores."""
        return os.path.expanduser(self.cache_dir or os.environ.get("LMJAX_CACHE") or "~/.cache/lmjax")


class Splits(NamedTuple):
    """Functions that read the documents of the training set and of each evaluation set anew."""

    train: Callable[[], Iterator[Document]]
    evals: dict[str, Callable[[], Iterator[Document]]]


def read_documents(
    spec: str, *, pairs: bool = False, bad_records: Literal["error", "skip"] = "error", whole: bool = False
) -> Iterator[Document]:
    """The documents that `spec` names, in a fixed order.

    Args:
      spec: "stdlib", or the path or glob of files.
      pairs: whether pairs are needed; without it a pair is read as its source, a line feed and its target.
      bad_records: whether a bad record is an error, or is left out and counted in the log.
      whole: whether one file of text is one document, rather than one for each part between blank lines.

    Raises:
      DataError: the data is absent, empty or bad; the message names file and line.
    """
    if spec == STDLIB:
        yield from stdlib.documents(pairs)
        return
    paths = files.find_files(spec)
    faults = files.Faults(bad_records)
    several = len(paths) > 1
    found = False
    for path in paths:
        if several and files.is_text(path) and not os.path.getsize(path):
            continue  # an empty __init__.py among others is no fault
        for record in files.read_records(path, pairs=pairs, whole=whole or several, faults=faults):
            found = True
            yield _document(record, pairs)
    faults.report()
    if not found:
        reason = f" ({faults.first})" if faults.first else ""
        raise DataError(f"--data: {spec!r} holds no documents{reason}; give it text")


def _document(record: files.Record, pairs: bool) -> Document:
    # White space around a text does not make it another text.
    group = hashlib.blake2b(record.source.strip().encode(), digest_size=16).hexdigest()
    if pairs:
        return Document((record.source, record.target), group, pair=True)
    text = record.source if record.target is None else f"{record.source}\n{record.target}"
    return Document(split_sentences(text), group)


def corpus_fingerprint(spec: str) -> str:
    """Hex digest of what `spec` names: of the files' bytes and formats in reading order, not of their names."""
    if spec == STDLIB:
        return stdlib.fingerprint()
    digest = hashlib.blake2b(digest_size=16)
    for path in files.find_files(spec):
        try:
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        digest.update(f"{files.suffix(path)}\0{path.lower().endswith('.gz')}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()


def open_splits(config: DataConfig, *, pairs: bool) -> Splits:
    """The training set and the evaluation sets: those of `config.eval`, else the held-out part of the training data.

    Documents are held out by a hash of their group, which is the same on every machine; a text that occurs twice is on
    one side. The held-out part is called "heldout"; with `held_out=0` there is none.

    Raises:
      FlagError: the split cannot be had, or an evaluation set is part of the training data.
      DataError: a path names no file.
    """
    read = functools.partial(read_documents, pairs=pairs, bad_records=config.bad_records)
    training = _files(config.train)
    for item in config.eval:
        shared = training & _files(item.path)
        if shared:
            raise FlagError(
                f"data.eval: {item.name!r} reads {min(shared)!r}, and so does data.train; leave data.eval empty to "
                "hold a part of the training data out"
            )
    whole = config.split == "tail"
    if config.eval:
        sets = {item.name: functools.partial(read, item.path, whole=whole) for item in config.eval}
        return Splits(functools.partial(read, config.train, whole=whole), sets)
    if whole and (pairs or config.train == STDLIB):
        raise FlagError('data.split: "tail" cuts running text, not pairs or the stdlib corpus; use data.split=hash')
    everything = functools.partial(read, config.train, whole=whole)
    if not config.held_out:
        return Splits(everything, {})
    select = _tails if whole else _by_hash
    sides = {held_out: functools.partial(_side, everything, select, config, held_out) for held_out in (False, True)}
    return Splits(sides[False], {"heldout": sides[True]})


def _files(spec: str) -> set[str]:
    return {STDLIB} if spec == STDLIB else {os.path.realpath(path) for path in files.find_files(spec)}


def _side(everything, select, config: DataConfig, held_out: bool) -> Iterator[Document]:
    """The documents of one side of the split; an empty side is an error."""
    empty = True
    for document in select(everything(), config.held_out, held_out):
        empty = False
        yield document
    if empty:
        side = "held-out" if held_out else "training"
        raise DataError(
            f"data.held_out: {config.held_out} of {config.train!r} leaves no document on the {side} side; give more "
            "documents, another share, or data.split=tail for one long text"
        )


def _by_hash(documents: Iterator[Document], share: float, held_out: bool) -> Iterator[Document]:
    for document in documents:
        draw = int.from_bytes(hashlib.blake2b(document.group.encode(), digest_size=8).digest(), "big")
        if (draw < share * 2**64) == held_out:
            yield document


def _tails(documents: Iterator[Document], share: float, held_out: bool) -> Iterator[Document]:
    for document in documents:
        cut = int(len(document.text) * (1 - share))
        text = document.text[cut:] if held_out else document.text[:cut]
        if text.strip():
            yield Document(split_sentences(text), document.group)
