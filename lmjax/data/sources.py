"""Documents from files and from the embedded corpus.

| name ends in (also with .gz) | documents |
|---|---|
| .jsonl | one JSON object a line, with `text`, or with `source` and `target` |
| .json | the same, or one array of such objects |
| .csv, .tsv | a header with the column `text`, or `source` and `target`; quotes mean nothing in .tsv |
| anything else | text: several files are a document each; one is split at blank lines (whole with `split="tail"`) |

`documents` asks for another cut of running text, and `text_field`, `source_field` and `target_field` for other names.
Everything is UTF-8, with or without a byte order mark; CRLF is read as LF, and so are the carriage returns of a file
that has no line feeds. What is bad is a record: it is an error, or is left out and counted, and its neighbours stay
whole. Reading is streamed: what is held in memory is one line, or one document of text, and both are bounded.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import pydantic

from lmjax.data import files, stdlib
from lmjax.data.columns import Column, read_columns
from lmjax.data.documents import Document
from lmjax.data.records import USUAL_NAMES, FieldNames, Record, read_records
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
    documents: Literal["auto", "files", "paragraphs", "lines"] = pydantic.Field(
        "auto",
        description="what a document of running text is: a file, what stands between blank lines, or a line; auto: "
        "paragraphs of a single file, else files",
    )
    text_field: str = pydantic.Field("text", min_length=1, description="the field of JSON, or column, of a text")
    source_field: str = pydantic.Field("source", min_length=1, description="the same, of a pair's source")
    target_field: str = pydantic.Field("target", min_length=1, description="the same, of a pair's target")
    bad_records: Literal["error", "skip"] = pydantic.Field(
        "error", description="what a record that cannot be read does: end the command, or be left out"
    )
    workers: int = pydantic.Field(0, ge=0, description="processes that make examples; 0: threads of this one")
    prefetch: int = pydantic.Field(4, gt=0, description="batches made ahead")
    worker_timeout: float = pydantic.Field(
        300.0, gt=0, description="seconds of waiting for a batch after which workers count as stuck"
    )
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
        """The folder of tokenised stores; raises FlagError if it cannot be one."""
        given = self.cache_dir or os.environ.get("LMJAX_CACHE")
        path = os.path.expanduser(given or "~/.cache/lmjax")
        there = os.path.abspath(path)
        while not os.path.lexists(there):
            there = os.path.dirname(there)
        if not os.path.isdir(there):
            name = "data.cache_dir" if self.cache_dir else "LMJAX_CACHE" if given else "the cache"
            raise FlagError(f"{name}: {path!r} cannot be a folder, for {there!r} is a file; name a folder")
        return path

    @property
    def reading(self) -> dict[str, str]:
        """What decides the documents of a file beside its bytes, where it is not what is usual."""
        names = ("documents", "text_field", "source_field", "target_field")
        return {
            name: getattr(self, name) for name in names if getattr(self, name) != type(self).model_fields[name].default
        }


class Unsplit(NamedTuple):
    """A document whose sentences were not looked for yet, which takes longer than to read it.

    Attributes:
      record: the text or the pair; None where `document` is there.
      group: as the document's.
      as_pair: whether a pair is needed.
      made: the document, where it has no sentences that are looked for.
    """

    record: Record | None
    group: str
    as_pair: bool
    made: Document | None = None

    @property
    def text(self) -> str:
        """The running text."""
        if self.made is not None:
            return self.made.text
        source, target = self.record
        return source if target is None else f"{source}\n{target}"

    def document(self) -> Document:
        """The document."""
        if self.made is not None:
            return self.made
        if self.as_pair:
            return Document(tuple(self.record), self.group, pair=True)
        return Document(split_sentences(self.text), self.group)


def read_documents(
    spec: str,
    *,
    pairs: bool = False,
    bad_records: Literal["error", "skip"] = "error",
    documents: Literal["auto", "files", "paragraphs", "lines"] = "auto",
    names: FieldNames = USUAL_NAMES,
    max_bytes: int = files.MAX_BYTES,
) -> Iterator[Document]:
    """The documents that `spec` names, in a fixed order.

    Args:
      spec: "stdlib", or the path or glob of files.
      pairs: whether pairs are needed; without it a pair is read as its source, a line feed and its target.
      bad_records: whether a bad record is an error, or is left out and counted in the log.
      documents: what a document of running text is; auto: what stands between blank lines of a single file, else a
        file.
      names: of the fields.
      max_bytes: of a document of running text, or of a line.

    Raises:
      DataError: the data is absent, empty or bad; the message names file and line.
    """
    for found in read_unsplit(spec, pairs, bad_records, documents, names, max_bytes):
        yield found.document()


def read_unsplit(
    spec: str,
    pairs: bool,
    bad_records: str,
    documents: str,
    names: FieldNames,
    max_bytes: int = files.MAX_BYTES,
    columns: Sequence[Column] = (),
) -> Iterator[Unsplit]:
    """What `read_documents` gives, before sentences are looked for; or else records of named columns."""
    if spec == STDLIB:
        if columns:
            wanted = ", ".join(column.name for column in columns)
            raise FlagError(f"--data={STDLIB}: it has no records of {wanted}; name a file of JSONL or CSV/TSV")
        yield from (Unsplit(None, document.group, pairs, document) for document in stdlib.documents(pairs))
        return
    paths = files.find_files(spec)
    faults = files.Faults(bad_records)
    if documents == "auto":
        documents = "paragraphs" if len(paths) == 1 else "files"
    empty = True
    for path in paths:
        if columns:
            for document in read_columns(path, faults, columns, names._asdict(), max_bytes):
                empty = False
                yield Unsplit(None, document.group, pairs, document)
            continue
        for record in read_records(path, faults, pairs=pairs, documents=documents, names=names, max_bytes=max_bytes):
            empty = False
            # White space around a text does not make it another text.
            group = hashlib.blake2b(record.source.strip().encode(), digest_size=16).hexdigest()
            yield Unsplit(record, group, pairs)
    if empty:
        reason = f" ({faults.first})" if faults.first else ""
        raise DataError(f"--data: {spec!r} holds no documents{reason}; give it text")
    faults.report()


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
