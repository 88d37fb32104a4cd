"""Reads documents from files and from the embedded corpus.

| file name ends in (also with .gz) | documents |
|---|---|
| .jsonl | one JSON object per line, with `text`, or with `source` and `target` |
| .json | the same, or one array of such objects |
| .csv, .tsv | a header with the column `text`, or `source` and `target`; in .tsv quotes have no special meaning |
| anything else | text: each of several files is a document; one file is split at blank lines unless `split="tail"` |

The setting `documents` splits running text in another way, and `text_field`, `source_field` and `target_field` change
the names of fields. Files are UTF-8, with or without a byte order mark; CRLF is read as LF, and so are carriage returns
of a file without line feeds. A bad record is an error or is left out and counted; the records around it are not
affected. Files are read as streams: only one line or one document of text is in memory, and the size of both is
limited.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import pydantic

from lmjax.data import files, stdlib
from lmjax.data.cleaning import Dedup, FilterConfig
from lmjax.data.columns import Column, read_columns
from lmjax.data.control import Control
from lmjax.data.documents import Document
from lmjax.data.record_format import PLAIN, RecordFormat
from lmjax.data.records import USUAL_NAMES, FieldNames, Record, read_records
from lmjax.data.sentences import split_sentences
from lmjax.errors import DataError, FlagError
from lmjax.schema import Schema

STDLIB = "stdlib"
SET_NAME = r"^[A-Za-z0-9_.-]+$"


class NamedSet(Schema):
    """A data set and its name, which appears in its metrics; the string `NAME=PATH` is accepted too."""

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
    """Settings of the data: what is read, how it is split into training and held-out data, and how batches are made.

    `held_out` and `split` divide the training data if `eval` names no sets. `split="hash"` holds out whole documents;
    `split="tail"` holds out the end of each text, so that a single long text can be split, as in nanoGPT.
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
    subset: float | None = pydantic.Field(
        None, gt=0, le=1, description="share of the training documents that is used, chosen by seeds.subset; none: all"
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
    column_names: tuple[str, ...] = pydantic.Field(
        (), description="names of the columns of CSV and TSV files without a header; none: the first line names them"
    )
    bad_records: Literal["error", "skip"] = pydantic.Field(
        "error", description="what a record that cannot be read does: end the command, or be left out"
    )
    dedup: Dedup = pydantic.Field(
        "none",
        description="which copies of earlier and of held-out documents are left out of the training data: exact; "
        "loose, whatever their case, punctuation and white space; near, also with most of their runs of five words "
        "(extra audit)",
    )
    dedup_threshold: float = pydantic.Field(
        0.8, ge=0.2, le=1, description="the Jaccard similarity of the runs of words from which on documents are near"
    )
    filter: FilterConfig = pydantic.Field(
        FilterConfig(), description="which training documents are left out for what they say"
    )
    control: Control = pydantic.Field(
        "none",
        description="a negative control: shuffled_tokens permutes the tokens of each document, in training and held-out"
        " data; shuffled_labels exchanges the labels of the training records",
    )
    workers: int = pydantic.Field(0, ge=0, description="processes that make examples; 0: threads of this one")
    prefetch: int = pydantic.Field(4, gt=0, description="batches made ahead")
    unpad: bool = pydantic.Field(
        True,
        description="where rows have much padding, as those of records do, the layers read their tokens in fewer rows; "
        "not with several processes, nor where devices split the batch",
    )
    worker_timeout: float = pydantic.Field(
        300.0, gt=0, description="seconds of waiting for a batch after which workers count as stuck"
    )
    cache_dir: str = pydantic.Field("", description="empty: $LMJAX_CACHE, or ~/.cache/lmjax")

    @pydantic.model_validator(mode="after")
    def _names_differ(self):
        for kind, sets in (("evaluation", self.eval), ("training", self.mixture)):
            names = [item.name for item in sets]
            if len(names) != len(set(names)):
                raise ValueError(f"two {kind} sets have the same name: {names}")
        if len(self.weights) not in (0, len(self.mixture)):
            raise ValueError(
                f"data.weights={','.join(map(str, self.weights))} has the length {len(self.weights)}, but the mixture "
                f"has {len(self.mixture)} sets; give one weight for each set, or none"
            )
        return self

    @property
    def train_sets(self) -> dict[str, str]:
        """Returns the paths of the training sets by name; without a mixture, the only set is called "train"."""
        return {item.name: item.path for item in self.mixture} or {"train": self.train}

    @property
    def cache_path(self) -> str:
        """Returns the folder of tokenised stores; raises FlagError if it, or a folder above it, is a file."""
        given = self.cache_dir or os.environ.get("LMJAX_CACHE")
        path = os.path.expanduser(given or "~/.cache/lmjax")
        there = os.path.abspath(path)
        while not os.path.lexists(there):
            there = os.path.dirname(there)
        if not os.path.isdir(there):
            name = "data.cache_dir" if self.cache_dir else "LMJAX_CACHE" if given else "the cache"
            raise FlagError(f"{name}: {path!r} cannot be a folder, because {there!r} is a file; name a folder")
        return path

    @property
    def reading(self) -> dict[str, Any]:
        """Returns the settings that change how documents are made from the bytes of files, if not the default."""
        names = ("documents", "text_field", "source_field", "target_field", "column_names")
        return {
            name: getattr(self, name) for name in names if getattr(self, name) != type(self).model_fields[name].default
        }


class Unsplit(NamedTuple):
    """A document that is not yet split into sentences, because splitting takes longer than reading.

    Attributes:
        record: the text or the pair; None if `made` is given.
        group: the document's group.
        as_pair: whether the document must be a pair.
        made: the document, if it needs no splitting into sentences.
    """

    record: Record | None
    group: str
    as_pair: bool
    made: Document | None = None

    @property
    def text(self) -> str:
        """Returns the running text."""
        if self.made is not None:
            return self.made.text
        source, target = self.record
        return source if target is None else f"{source}\n{target}"

    def document(self) -> Document:
        """Returns the document, split into sentences unless it is a pair or a record."""
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
    header: Sequence[str] = (),
) -> Iterator[Document]:
    """Yields the documents that `spec` names, in a fixed order.

    Args:
        spec: "stdlib", or the path or glob of files.
        pairs: whether documents must be pairs; otherwise a pair is read as its source, a line feed and its target.
        bad_records: whether a bad record is an error, or is left out and counted in the log.
        documents: how running text is split into documents; "auto": at blank lines if there is one file, otherwise one
            document per file.
        names: names of the fields.
        max_bytes: the largest size of a document of running text, or of a line.
        header: names of the columns of tables without a header; empty: the first row of a table is its header.

    Raises:
        DataError: the data is missing, empty or bad; the message names file and line.
    """
    for found in read_unsplit(spec, pairs, bad_records, documents, names, max_bytes, header=header):
        yield found.document()


def read_unsplit(
    spec: str,
    pairs: bool,
    bad_records: str,
    documents: str,
    names: FieldNames,
    max_bytes: int = files.MAX_BYTES,
    columns: Sequence[Column] = (),
    record_format: RecordFormat = PLAIN,
    header: Sequence[str] = (),
) -> Iterator[Unsplit]:
    """Yields the documents of `read_documents` before they are split into sentences; with `columns`, records."""
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
            for document in read_columns(path, faults, columns, names._asdict(), max_bytes, record_format, header):
                empty = False
                yield Unsplit(None, document.group, pairs, document)
            continue
        for record in read_records(
            path, faults, pairs=pairs, documents=documents, names=names, max_bytes=max_bytes, header=header
        ):
            empty = False
            # Texts that differ only in surrounding white space are in one group.
            group = hashlib.blake2b(record.source.strip().encode(), digest_size=16).hexdigest()
            yield Unsplit(record, group, pairs)
    if empty:
        reason = f" ({faults.first})" if faults.first else ""
        raise DataError(f"--data: {spec!r} holds no documents{reason}; give it text")
    faults.report()


def corpus_fingerprint(spec: str) -> str:
    """Returns a hex digest of the bytes and formats of the files that `spec` names, in reading order.

    The names of the files have no influence, except for the suffix.

    Raises:
        DataError: no file matches, or one cannot be read.
    """
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
