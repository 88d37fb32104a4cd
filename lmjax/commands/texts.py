"""Reads the files of texts, and of texts with labels, that a command looks at."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from lmjax.data.fields import has_fields, text_of
from lmjax.data.files import Faults, find_files, read_file, read_lines
from lmjax.errors import DataError
from lmjax.evaluation.records import read_records


class Labelled(NamedTuple):
    """Texts, the label of each, and the group of each; no groups: None."""

    texts: list[str]
    labels: list[str]
    groups: list[str] | None


def read_texts(spec: str | None, flag: str, text_field: str = "text") -> list[str]:
    """Returns the texts of files, each once, in their order; none without files.

    Args:
        spec: a file or a glob, of a text in each line or of records; None or empty: there is none.
        flag: that names it, for messages.
        text_field: the field of a record's text.

    Raises:
        DataError: a file cannot be read, or none has a text.
    """
    if not spec:
        return []
    found: dict[str, None] = {}
    for path in find_files(spec):
        if has_fields(path):
            need = "a record needs a text"
            texts = [text_of(where, fields, text_field, need) for where, fields in read_records(path)]
        else:
            texts = list(read_file(path, functools.partial(_lines, path), Faults("error")))
        found |= dict.fromkeys(text for text in texts if text.strip())
    if not found:
        raise DataError(f"--{flag}: {spec!r} holds no texts; give it at least one")
    return list(found)


def read_labelled(spec: str, text_field: str = "text", header: Sequence[str] = ()) -> Labelled:
    """Returns the texts and the labels of records with `label` and, if all have one, a `group`.

    Args:
        spec: a file or a glob.
        text_field: the field of a text.
        header: names of the columns of tables without a header; empty: the first row of a table is its header.

    Raises:
        DataError: a file cannot be read, or a record has no text or no label.
    """
    need, rows = f"a probe needs {text_field} and label", []
    for path in find_files(spec):
        for where, fields in read_records(path, header):
            text, label = (text_of(where, fields, name, need) for name in (text_field, "label"))
            if not text.strip():
                raise DataError(f"{where}: {text_field!r} is empty; {need}")
            rows.append((text, label, text_of(where, fields, "group", need) if "group" in fields else None))
    if not rows:
        raise DataError(f"--labels: {spec!r} holds no records; give it texts and labels")
    texts, labels, groups = map(list, zip(*rows, strict=True))
    return Labelled(texts, labels, None if None in groups else groups)


def _lines(path: str, file: object) -> list[str]:
    texts = []
    for line in read_lines(path, file):
        if line.fault:
            raise DataError(line.fault)
        texts.append(line.text.rstrip("\r\n"))
    return texts
