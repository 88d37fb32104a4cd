"""Splits documents into training and held-out ones, and checks that neither part is empty before either is used."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lmjax.data import files
from lmjax.data.columns import Column
from lmjax.data.documents import Document
from lmjax.data.fields import has_fields
from lmjax.data.record_format import PLAIN, RecordFormat
from lmjax.data.records import FieldNames, Record
from lmjax.data.sources import STDLIB, DataConfig, Unsplit, read_unsplit
from lmjax.errors import DataError, FlagError
from lmjax.streams import subseed

Read = Callable[[], Iterator[Unsplit]]


class Splits(NamedTuple):
    """By name of each training set and each evaluation set, a function that reads its documents from the beginning."""

    train: dict[str, Callable[[], Iterator[Document]]]
    evals: dict[str, Callable[[], Iterator[Document]]]


def open_splits(
    config: DataConfig,
    *,
    pairs: bool,
    columns: Sequence[Column] = (),
    record_format: RecordFormat = PLAIN,
    subset_seed: int = 0,
) -> Splits:
    """Returns the training sets and the evaluation sets: `config.eval`, or else held-out parts of the training sets.

    A hash of a document's group decides whether it is held out, so the split is the same on every machine, and a text
    that occurs twice is in one part, in a mixture too. The held-out part is called "heldout", or in a mixture like its
    training set; with `held_out=0` there is none. When the first set is read, it is checked that every set, and both
    parts of each, have a document. Otherwise an empty part would be found only after the sets before it are tokenised.

    Args:
        config: what is read, and how it is split.
        pairs: whether documents are pairs.
        columns: of records; empty if documents are pairs or running text.
        record_format: how records stand in files.
        subset_seed: decides which training documents `config.subset` chooses.

    Raises:
        FlagError: this data cannot be split in this way, or a file is read twice.
        DataError: a path names no file.
    """
    _check_files(config)
    tail, documents = config.split == "tail", config.documents
    if tail and not config.eval and (pairs or columns or STDLIB in config.train_sets.values()):
        raise FlagError('data.split: "tail" cuts running text, not pairs, records or stdlib; use data.split=hash')
    if tail and documents not in ("auto", "files"):
        raise FlagError(f"data.documents={documents}: data.split=tail cuts the end off each file; use data.split=hash")
    documents = "files" if tail else documents
    names = FieldNames(config.text_field, config.source_field, config.target_field)

    def reader(path: str) -> Read:
        return functools.partial(
            read_unsplit,
            path,
            pairs,
            config.bad_records,
            documents,
            names,
            columns=columns,
            record_format=record_format,
            header=config.column_names,
        )

    subset = None if config.subset is None else (config.subset, subset_seed)
    train = {name: _Set(path, reader(path), config.held_out, tail, subset) for name, path in config.train_sets.items()}
    evals = {item.name: _Set(item.path, reader(item.path), 0.0, tail) for item in config.eval}
    if config.eval or not config.held_out:
        train = {name: dataclasses.replace(each, share=0.0) for name, each in train.items()}

    @functools.cache
    def check() -> None:
        for each in (*train.values(), *evals.values()):
            each.check()

    def opened(sets: dict[str, _Set], held_out: bool) -> dict[str, Callable[[], Iterator[Document]]]:
        return {name: functools.partial(_documents, check, each, held_out) for name, each in sets.items()}

    if config.eval or not config.held_out:
        return Splits(opened(train, held_out=False), opened(evals, held_out=False))
    held_out = opened(train, held_out=True)
    return Splits(opened(train, held_out=False), held_out if config.mixture else {"heldout": held_out["train"]})


@dataclasses.dataclass(frozen=True)
class _Set:
    """A data set, of which a share may be held out.

    Attributes:
        path: path or glob of its files.
        read: reads the documents from the beginning.
        share: the share that is held out; 0 for none.
        tail: whether the end of each text is held out, instead of whole documents.
        subset: the share of the training documents that is used, and the seed that chooses them; None: all are used.
    """

    path: str
    read: Read
    share: float
    tail: bool
    subset: tuple[float, int] | None = None

    def side(self, held_out: bool) -> Iterator[Unsplit]:
        """Returns the held-out documents, or the training documents."""
        documents = self.read()
        if self.share:
            documents = (_tails if self.tail else _by_hash)(documents, self.share, held_out)
        if self.subset is None or held_out:
            return documents
        # A hash of the seed and the group, so that a document is chosen or not whatever other documents there are.
        share, seed = self.subset
        return (found for found in documents if subseed(seed, "subset", found.group) < share * 2**64)

    def check(self) -> None:
        """Raises DataError if there is no training or no held-out document; reads only up to the first of each."""
        sides = (True, False) if self.share else (False,)
        empty = next((side for side in sides if next(self.side(side), None) is None), None)
        if empty is None:
            return
        count = sum(1 for _ in self.read())
        running = self.path != STDLIB and not all(map(has_fields, files.find_files(self.path)))
        remedy = "give more documents, another share, or --eval_data=PATH"
        if running and not self.tail:
            remedy = (
                "--config.data.documents=lines makes each line a document, --config.data.split=tail holds the end of "
                "the text out, --eval_data=PATH names other text"
            )
        chosen = "" if self.subset is None else f" with data.subset={self.subset[0]}"
        raise DataError(
            f"--data: {'one document' if count == 1 else f'{count} documents'} found in {self.path!r}, and "
            f"--config.data.held_out={self.share}{chosen} leaves no document on the "
            f"{'held-out' if empty else 'training'} side; {remedy}"
        )


def _documents(check: Callable[[], None], each: _Set, held_out: bool) -> Iterator[Document]:
    check()
    for found in each.side(held_out):
        yield found.document()


def _by_hash(documents: Iterator[Unsplit], share: float, held_out: bool) -> Iterator[Unsplit]:
    for document in documents:
        if is_held_out(document.group, share) == held_out:
            yield document


def is_held_out(group: str, share: float) -> bool:
    """Returns whether the documents of a group are held out by `split="hash"`, of which a share is."""
    draw = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "big")
    return draw < share * 2**64


def _tails(documents: Iterator[Unsplit], share: float, held_out: bool) -> Iterator[Unsplit]:
    for document in documents:
        cut = int(len(document.text) * (1 - share))
        text = document.text[cut:] if held_out else document.text[:cut]
        if text.strip():
            yield Unsplit(Record(text), document.group, as_pair=False)


def _check_files(config: DataConfig) -> None:
    """Raises FlagError if two training sets, or a training and an evaluation set, read the same file."""
    owner = {}
    for name, path in config.train_sets.items():
        files_of_set = _files(path)
        if shared := files_of_set & owner.keys():
            raise FlagError(
                f"data.mixture: {name!r} reads {min(shared)!r}, and so does {owner[min(shared)]!r}; give each file to "
                "one set"
            )
        owner |= dict.fromkeys(files_of_set, name)
    for item in config.eval:
        if shared := _files(item.path) & owner.keys():
            raise FlagError(
                f"data.eval: {item.name!r} reads {min(shared)!r}, and so does "
                f"data.{'mixture' if config.mixture else 'train'}; leave data.eval empty to hold a part of the "
                "training data out"
            )


def _files(spec: str) -> set[str]:
    return {STDLIB} if spec == STDLIB else {os.path.realpath(path) for path in files.find_files(spec)}
