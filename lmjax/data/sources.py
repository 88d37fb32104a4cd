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
from typing import Annotated, Literal, NamedTuple

import pydantic

from lmjax.data import files, stdlib
from lmjax.data.documents import Document
from lmjax.data.sentences import split_sentences
from lmjax.errors import DataError, FlagError
from lmjax.schema import Schema

STDLIB = "stdlib"
SET_NAME = r"^[A-Za-z0-9_.-]+$"


class NamedSet(Schema):
    """A set of data under a name that its metrics carry; `NAME=PATH` is read as one."""

    name: str = pydantic.Field(pattern=SET_NAME)
    path: str = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_text(cls, value):
        if not isinstance(value, str):
            return value
        name, equals, path = value.partition("=")
        if not equals:
            raise ValueError("a set is written NAME=PATH")
        return {"name": name, "path": path}


class DataConfig(Schema):
    """What is read, how it is split, and how it reaches the training step.

    `held_out` and `split` divide the training data where `eval` names no sets of its own. `split="hash"` keeps whole
    documents together; `split="tail"` cuts the end off each text, so that one long text can be split, as nanoGPT does.
    """

    train: str = pydantic.Field(STDLIB, min_length=1, description="stdlib, or a path or glob of files")
    mixture: tuple[NamedSet, ...] = pydantic.Field(
        (), description="sets that are read instead of `train`, mixed row by row: NAME=PATH,NAME=PATH"
    )
    weights: tuple[Annotated[float, pydantic.Field(ge=0)], ...] = pydantic.Field(
        (), description="how often each set of the mixture comes; 0, or none given: its number of tokens"
    )
    temperature: float = pydantic.Field(
        1.0, gt=0, description="sets of a mixture come at weight**(1/temperature); the higher, the more evenly"
    )
    eval: tuple[NamedSet, ...] = pydantic.Field(
        (), description="held-out sets, NAME=PATH,NAME=PATH; none: a part of the training text"
    )
    held_out: float = pydantic.Field(
        0.05, ge=0.0, le=0.5, description="share of the training text that is held out where eval names no set"
    )
    split: Literal["hash", "tail"] = pydantic.Field(
        "hash", description="hash holds out whole documents, tail the end of each text"
    )
    bad_records: Literal["error", "skip"] = pydantic.Field(
        "error", description="what a record that cannot be read does: end the command, or be left out"
    )
    workers: int = pydantic.Field(0, ge=0, description="processes that make examples; 0: threads of this one")
    prefetch: int = pydantic.Field(4, gt=0, description="batches made ahead")
    cache_dir: str = pydantic.Field("", description="empty: $LMJAX_CACHE, or ~/.cache/lmjax")

    @pydantic.model_validator(mode="after")
    def _names_differ(self):
        for kind, sets in (("evaluation", self.eval), ("training", self.mixture)):
            names = [item.name for item in sets]
            if len(names) != len(set(names)):
                raise ValueError(f"two {kind} sets have one name: {names}")
        if len(self.weights) not in (0, len(self.mixture)):
            raise ValueError(
                f"data.weights={','.join(map(str, self.weights))} are {len(self.weights)}, and the mixture has "
                f"{len(self.mixture)} sets; give one for each, or none"
            )
        return self

    @property
    def train_sets(self) -> dict[str, str]:
        """The paths of the training sets by name; one that is no mixture is called "train"."""
        return {item.name: item.path for item in self.mixture} or {"train": self.train}

    @property
    def cache_path(self) -> str:
        """The folder of tokenised stores."""
        return os.path.expanduser(self.cache_dir or os.environ.get("LMJAX_CACHE") or "~/.cache/lmjax")


class Splits(NamedTuple):
    """Functions that read the documents of each training set and of each evaluation set anew."""

    train: dict[str, Callable[[], Iterator[Document]]]
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
    """The training sets and the evaluation sets: those of `config.eval`, else the held-out parts of the training sets.

    Documents are held out by a hash of their group, which is the same on every machine; a text that occurs twice is on
    one side, in a mixture too. The held-out part is called "heldout", in a mixture as its set; with `held_out=0` there
    is none.

    Raises:
      FlagError: the split cannot be had, or a file is read twice.
      DataError: a path names no file.
    """
    read = functools.partial(read_documents, pairs=pairs, bad_records=config.bad_records)
    _check_files(config)
    whole = config.split == "tail"
    if whole and not config.eval and (pairs or STDLIB in config.train_sets.values()):
        raise FlagError('data.split: "tail" cuts running text, not pairs or the stdlib corpus; use data.split=hash')
    everything = {name: functools.partial(read, path, whole=whole) for name, path in config.train_sets.items()}
    if config.eval:
        sets = {item.name: functools.partial(read, item.path, whole=whole) for item in config.eval}
        return Splits(everything, sets)
    if not config.held_out:
        return Splits(everything, {})
    select = _tails if whole else _by_hash

    def sides(held_out: bool) -> dict[str, Callable[[], Iterator[Document]]]:
        return {
            name: functools.partial(_side, reader, select, config.held_out, config.train_sets[name], held_out)
            for name, reader in everything.items()
        }

    evals = sides(held_out=True)
    return Splits(sides(held_out=False), evals if config.mixture else {"heldout": evals["train"]})


def _check_files(config: DataConfig) -> None:
    """Raises FlagError if two sets read one file."""
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


def _side(everything, select, share: float, path: str, held_out: bool) -> Iterator[Document]:
    """The documents of one side of the split; an empty side is an error."""
    empty = True
    for document in select(everything(), share, held_out):
        empty = False
        yield document
    if empty:
        side = "held-out" if held_out else "training"
        raise DataError(
            f"data.held_out: {share} of {path!r} leaves no document on the {side} side; give more "
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
