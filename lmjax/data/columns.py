"""Columns: the named fields that an objective reads from each record, as texts to tokenise or as values to store.

| type | JSON | cell of a table |
|---|---|---|
| text | a string, tokenised | the same |
| texts | a list of strings, each tokenised separately (choices) | words separated by white space |
| words | a list of strings, tokenised as one text with a space between them | words separated by white space |
| string | a string; an integer or boolean is stored as JSON writes it | the same |
| integer, number | a number | a number |
| strings, integers | a list of them | words separated by white space |
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lmjax.data.documents import Document, spaced
from lmjax.data.fields import Fields, check_text, field_of
from lmjax.data.files import MAX_BYTES, Faults, suffix
from lmjax.data.record_format import PLAIN, RecordFormat
from lmjax.errors import DataError

Value = str | int | float | tuple[str, ...] | tuple[int, ...]
_TABLES = (".csv", ".tsv")
_TYPES = {
    "text": "a string",
    "texts": "a list of strings",
    "words": "a list of strings",
    "string": "a string or a whole number",
    "strings": "a list of strings",
    "integer": "a whole number of at most 64 bits",
    "integers": "a list of whole numbers of at most 64 bits",
    "number": "a finite number",
}
# The types of lists, and those of their items.
_ITEMS = {"texts": "text", "words": "text", "strings": "string", "integers": "integer"}


class Column(NamedTuple):
    """A field that an objective reads from each record.

    Attributes:
        name: of the field.
        type: the type of its values; text, texts and words are tokenised, all others are stored unchanged.
        optional: whether a record may lack it; the value is then an empty text, list or string, or a number that is
            NaN. An integer cannot be optional.
        classes: the only values that a string, or each string of a list, may have; empty: any that is not blank, for
            labels whose names are not known yet; None: any.
        uniform: whether all records of a file must have it or none, if it is optional.
    """

    name: str
    type: Literal["text", "texts", "words", "string", "strings", "integer", "integers", "number"] = "text"
    optional: bool = False
    classes: tuple[str, ...] | None = None
    uniform: bool = False

    @property
    def tokenised(self) -> bool:
        """Returns whether the column is stored as tokens, not as values."""
        return self.type in ("text", "texts", "words")


def read_columns(
    path: str,
    faults: Faults,
    columns: Sequence[Column],
    names: Mapping[str, str] | None = None,
    max_bytes: int = MAX_BYTES,
    record_format: RecordFormat = PLAIN,
    header: Sequence[str] = (),
) -> Iterator[Document]:
    """Yields the records of one file as documents; leaves out those without any text, unless they have values.

    Args:
        path: the file; its suffix decides the format.
        faults: handles bad records.
        columns: what is read from each record; at least one is tokenised, and the first column decides the group.
        names: the names of columns in the file, where they differ from the columns' own names.
        max_bytes: the largest size of a line, or of an object in an array.
        record_format: how records stand in the file.
        header: as for `read_fields`.

    Raises:
        DataError: a record is bad and `faults` raises it, a table lacks a column, or the file cannot be read.
    """
    names = {column.name: (names or {}).get(column.name, column.name) for column in columns}
    if not record_format.reads(path):
        faults.bad(f"{path}: plain text, and {_need(columns, names)}: give JSONL or CSV/TSV with these fields")
        return
    check = functools.partial(_check_fields, columns=columns, names=names)
    table = suffix(path) in _TABLES
    first: tuple[str, frozenset[str]] | None = None
    uniform = [names[column.name] for column in columns if column.uniform]
    for where, fields in record_format.records(path, faults, check, max_bytes, header):
        try:
            document = read_record(where, fields, columns, names, table=table, record_format=record_format)
            there = frozenset(name for name in uniform if name in fields)
            first = first or (where, there)
            if odd := sorted(there ^ first[1]):
                said = ("a", "none") if odd[0] in there else ("no", "one")
                raise DataError(
                    f"{where}: has {said[0]} {odd[0]!r}, and {first[0]} has {said[1]}; give it to all or none"
                )
        except DataError as error:
            faults.bad(str(error))
            continue
        # A label belongs to an empty text too.
        if document.text.strip() or document.values:
            yield document


def read_record(
    where: str,
    fields: Fields,
    columns: Sequence[Column],
    names: Mapping[str, str] | None = None,
    *,
    table: bool = False,
    record_format: RecordFormat = PLAIN,
) -> Document:
    """Returns a record as a document.

    Args:
        where: the place of the record in messages.
        fields: its fields.
        columns: what is read of it.
        names: as for `read_columns`.
        table: whether its values are cells of a table.
        record_format: how records stand in files.

    Raises:
        DataError: a field is missing or has another type.
    """
    assert not any(c.optional and c.type == "integer" for c in columns), "which number, if none?"
    names = {column.name: (names or {}).get(column.name, column.name) for column in columns}
    fields = record_format.arranged(where, fields)
    _check_fields(where, list(fields), columns, names)
    need = _need(columns, names)
    found: dict[str, Value] = {}
    for column in columns:
        name = names[column.name]
        if name in fields:
            value = _value(where, name, field_of(where, fields, name, need), column.type, table)
        else:
            value = () if column.type in _ITEMS else math.nan if column.type == "number" else ""
        found[column.name] = value
    found = record_format.checked(where, found)
    for column in columns:
        if column.classes is not None and names[column.name] in fields:
            given = found[column.name]
            for each in given if isinstance(given, tuple) else (given,):
                _check_class(where, names[column.name], each, column.classes)
    return _document(found, columns)


def _document(found: Mapping[str, Value], columns: Sequence[Column]) -> Document:
    """Returns a record as a document, from its values by column."""
    texts = [found[c.name] if c.type in _ITEMS else (found[c.name],) for c in columns if c.tokenised]
    running = tuple(c.type == "words" for c in columns if c.tokenised)
    texts = [spaced(text) if joined else text for text, joined in zip(texts, running, strict=True)]
    first = found[columns[0].name]
    # Texts that differ only in surrounding white space are in one group.
    said = "\n".join(map(str, first)) if isinstance(first, tuple) else str(first)
    return Document(
        tuple(segment for text in texts for segment in text),
        hashlib.blake2b(said.strip().encode(), digest_size=16).hexdigest(),
        counts=tuple(map(len, texts)),
        values=tuple(found[c.name] for c in columns if not c.tokenised),
        running=running,
    )


def _need(columns: Sequence[Column], names: Mapping[str, str]) -> str:
    """Returns the part of an error message that says which fields a record needs."""
    return f"a record needs {' and '.join(names[column.name] for column in columns if not column.optional)}"


def _check_fields(where: str, there: Sequence[str], columns: Sequence[Column], names: Mapping[str, str]) -> None:
    """Raises DataError if the fields of a record, or the header of a table, lack a column or repeat one."""
    if missing := [names[c.name] for c in columns if not c.optional and names[c.name] not in there]:
        fields = ", ".join(there)[:200] or "(none)"
        raise DataError(f"{where}: no {missing[0]!r} among the fields {fields}; {_need(columns, names)}")
    if repeated := [name for name in names.values() if there.count(name) > 1]:
        raise DataError(f"{where}: {there.count(repeated[0])} columns are called {repeated[0]!r}; rename one")


def _value(where: str, name: str, given: Any, kind: str, table: bool) -> Value:
    """Returns the value of a field in the type of its column; raises DataError if it has another type."""
    if kind in _ITEMS:
        items = given.split() if table and isinstance(given, str) else given
        if isinstance(items, list):
            return tuple(_value(where, name, item, _ITEMS[kind], table) for item in items)
    elif kind in ("text", "string"):
        if kind == "string" and isinstance(given, int):
            return json.dumps(given)
        if isinstance(given, str):
            check_text(where, name, given)
            return given
    else:
        number = _number(given, int if kind == "integer" else float)
        if number is not None:
            return number
    raise DataError(f"{where}: {name!r} is {str(given)[:40]!r}, and must be {_TYPES[kind]}")


def _check_class(where: str, name: str, value: str, classes: Sequence[str]) -> None:
    """Raises DataError for a value that is blank, or not one of the known classes."""
    known = f"the known ones are {', '.join(classes[:20])}{' ...' if classes[20:] else ''}" if classes else ""
    if not value.strip():
        raise DataError(f"{where}: {name!r} is empty; {known or 'give each record a label'}")
    if classes and value not in classes:
        raise DataError(f"{where}: {name!r} is {value[:40]!r}; {known}")


def _number(given: Any, kind: type) -> int | float | None:
    """Returns a number, or the number in a string; None if it is not a finite number of this type."""
    if kind is int and isinstance(given, float):
        return None
    try:
        number = kind(given)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and (kind is float or -(2**63) <= number < 2**63) else None
