"""Parsers for the records of each task; every error names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmjax.data.chat import MESSAGES
from lmjax.data.fields import Fields, field_of, has_fields, read_fields, text_of
from lmjax.data.files import Faults, find_files
from lmjax.data.messages import read_messages
from lmjax.data.records import USUAL_NAMES, FieldNames
from lmjax.errors import DataError
from lmjax.inference.score.score import Question


def read_records(path: str, header: Sequence[str] = ()) -> Iterator[tuple[str, Fields]]:
    """Yields the location (file and line) and the fields of each record of a file; an empty file has none.

    Args:
        path: of the file.
        header: names of the columns of a table without a header; empty: its first row is the header.

    Raises:
        DataError: the file cannot be read, or a record is malformed.
    """
    if not has_fields(path):
        raise DataError(f"{path}: not a file of records; name a .jsonl, .json, .csv or .tsv file (also .gz)")
    yield from read_fields(path, Faults("error"), header=header)


def read_task(
    spec: str, parse: Callable[[str, Fields], Any], header: Sequence[str] = ()
) -> tuple[list[str], list[Any]]:
    """Returns the locations of the records of a file or a glob of files, and the results of `parse` for them.

    Raises:
        DataError: there is no file or no record, or a record is malformed.
    """
    names, found = [], []
    for path in find_files(spec):
        for where, fields in read_records(path, header):
            names.append(where)
            found.append(parse(where, fields))
    if not found:
        raise DataError(f"--data: {spec!r} holds no records; give it at least one")
    return names, found


def _text(where: str, fields: Fields, name: str, needed: str, empty: bool = False) -> str:
    """Returns the text of a field; raises DataError if it is empty, unless `empty` allows that."""
    value = text_of(where, fields, name, needed)
    if not value.strip() and not empty:
        raise DataError(f"{where}: {name!r} is empty; {needed}")
    return value


def prompt(where: str, fields: Fields) -> str | list[dict[str, str]]:
    """Returns the text `prompt` of a record, or the conversation in its `messages`."""
    if MESSAGES in fields:
        found = read_messages(where, field_of(where, fields, MESSAGES, "a conversation needs it"), answered=False)
        return [message._asdict() for message in found]
    return _text(where, fields, "prompt", "a record needs a prompt, a text that is not empty")


def minimal_pair(where: str, fields: Fields) -> tuple[str, str]:
    """Returns the texts `good` and `bad` of a record."""
    good, bad = (_text(where, fields, name, "a minimal pair needs good and bad") for name in ("good", "bad"))
    return good, bad


def source_target(where: str, fields: Fields, names: FieldNames = USUAL_NAMES) -> tuple[str, str]:
    """Returns the source and the target of a record, whose fields have the names given by `names`."""
    source, target = (_text(where, fields, name, names.need(pairs=True)) for name in (names.source, names.target))
    return source, target


def question(where: str, fields: Fields) -> Question:
    """Returns the `context`, the `choices` (a list; in CSV as JSON) and the `answer` (an index from 0) of a record."""
    needed = "a question needs context, choices (a list) and answer (the number of the right one, from 0)"
    context = _text(where, fields, "context", needed, empty=True)
    choices, answer = (_as_json(where, fields, name, needed) for name in ("choices", "answer"))
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise DataError(f"{where}: 'choices' is {str(choices)[:80]!r}, not a list of two or more texts; {needed}")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(f"{where}: 'answer' is {str(answer)[:40]!r}, and there are {len(choices)} choices; {needed}")
    return Question(context, choices, answer)


def _as_json(where: str, fields: Fields, name: str, needed: str) -> Any:
    """Returns the value of a field; a text, as all fields of CSV are, is parsed as JSON."""
    value = field_of(where, fields, name, needed)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: {name!r} is {value[:80]!r}, which is not JSON; {needed}") from e
