"""Reads questions about texts: the nested JSON files of SQuAD 1.1 and 2.0, and flat records.

A flat record has the fields `question`, `context` and `answers`: {"text": [...], "answer_start": [...]}, a list of
{"text": ..., "answer_start": ...}, or one of them. No answers mean that the context does not answer the question.
`answer_start` counts the characters of Unicode before the answer (Rajpurkar et al. 2016, arXiv:1606.05250).
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from lmjax.data.fields import Fields, Header, field_of
from lmjax.data.files import Faults, read_file, suffix
from lmjax.data.record_format import RecordFormat
from lmjax.errors import DataError

CONTEXT, QUESTION, ANSWERS, STARTS, ID = "context", "question", "answers", "starts", "id"
_NEED = 'answers are {"text": [...], "answer_start": [...]} or a list of {"text": ..., "answer_start": ...}'


@dataclasses.dataclass(frozen=True)
class Questions(RecordFormat):
    """Records with a question, a context, and the answers with the characters at which they begin.

    Attributes:
        no_answer: whether a question may be without an answer.
    """

    no_answer: bool

    def records(
        self, path: str, faults: Faults, check_header: Header, max_bytes: int, header: Sequence[str] = ()
    ) -> Iterator[tuple[str, Fields]]:
        """Yields the place of each question and its fields; a .json file with an object `data` is read as SQuAD's."""
        if suffix(path) != ".json" or not _is_nested(path, max_bytes):
            yield from super().records(path, faults, check_header, max_bytes, header)
            return

        def read(file: BinaryIO) -> Iterator[tuple[str, Fields]]:
            return _nested(path, json.loads(file.read()), faults)

        yield from read_file(path, read, faults)

    def arranged(self, where: str, fields: Fields) -> Fields:
        """Returns the fields of a question, its answers and their first characters in two lists."""
        given = [(name, value) for name, value in fields.items() if name not in (ANSWERS, STARTS)]
        if ANSWERS not in fields:
            unanswerable = fields.get("is_impossible") is True
            return Fields([*given, (ANSWERS, []), (STARTS, [])] if unanswerable or not self.gold else given)
        texts, starts = _answers(where, field_of(where, fields, ANSWERS, _NEED))
        return Fields([*given, (ANSWERS, texts), (STARTS, starts)])

    def checked(self, where: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the values of a question, whose answers stand in the context where they are said to begin."""
        if not self.gold:
            return values
        where = f"{where}, question {values[ID]!r}" if values[ID] else where
        context, answers = values[CONTEXT], values[ANSWERS]
        if not values[QUESTION].strip():
            raise DataError(f"{where}: 'question' is empty; give it a text, or remove the record")
        if not answers and not self.no_answer:
            raise DataError(f"{where}: no answers; remove the record, or set no_answer=true for questions without any")
        for text, start in zip(answers, values[STARTS], strict=True):
            if not text.strip():
                raise DataError(f"{where}: an answer is empty; leave it out of 'answers' if there is none")
            there = context[start : start + len(text)] if start >= 0 else ""
            if there != text:
                at = context.find(text)
                hint = f"it begins at {at}" if at >= 0 else "it does not occur in the context"
                raise DataError(
                    f"{where}: the answer {text[:40]!r} does not stand at character {start} of the context, where "
                    f"{there[:40]!r} stands ({hint}); correct 'answer_start'"
                )
        return values


def _answers(where: str, given: Any) -> tuple[list[Any], list[Any]]:
    """Returns the texts of answers and their first characters."""
    each = [given] if isinstance(given, dict) else given
    if not isinstance(each, list) or not all(
        isinstance(x, dict) and {"text", "answer_start"} <= x.keys() for x in each
    ):
        raise DataError(f"{where}: 'answers' is {str(given)[:40]!r}; {_NEED}")
    texts: list[Any] = []
    starts: list[Any] = []
    for x in each:
        text, start = x["text"], x["answer_start"]
        lists = isinstance(text, list), isinstance(start, list)
        if lists[0] != lists[1] or (lists[0] and len(text) != len(start)):
            raise DataError(f"{where}: 'answers' has not one 'answer_start' for each 'text'; {_NEED}")
        texts += text if lists[0] else [text]
        starts += start if lists[0] else [start]
    if not all(isinstance(text, str) for text in texts) or not all(type(start) is int for start in starts):
        raise DataError(f"{where}: a 'text' is no string, or an 'answer_start' no whole number; {_NEED}")
    return texts, starts


def _is_nested(path: str, max_bytes: int) -> bool:
    """Returns whether a whole file is one JSON object with `data`, as those of SQuAD are."""

    def read(file: BinaryIO) -> Iterator[bool]:
        content = b"" if file.peek().lstrip()[:1] == b"[" else file.read(max_bytes + 1)
        try:
            found = json.loads(content) if len(content) <= max_bytes else None
        except (ValueError, RecursionError):
            found = None
        yield isinstance(found, dict) and isinstance(found.get("data"), list)

    # What cannot be read is told when the records are read.
    return next(iter(read_file(path, read, Faults("skip"))), False)


def _nested(path: str, content: Mapping[str, Any], faults: Faults) -> Iterator[tuple[str, Fields]]:
    """Yields the questions of a file of SQuAD; the place of each is its path in the file."""
    for a, article in enumerate(content["data"]):
        for p, paragraph in enumerate(_list(f"{path}: data[{a}]", article, "paragraphs", faults)):
            where = f"{path}: data[{a}].paragraphs[{p}]"
            for q, question in enumerate(_list(where, paragraph, "qas", faults)):
                if not isinstance(question, dict):
                    faults.bad(f"{where}.qas[{q}] is {str(question)[:40]!r}, not an object; remove it")
                    continue
                fields = {CONTEXT: paragraph.get(CONTEXT), **question}
                yield f"{where}.qas[{q}]", Fields([(k, x) for k, x in fields.items() if x is not None])


def _list(where: str, given: Any, name: str, faults: Faults) -> list[Any]:
    """Returns a field that is a list; reports anything else and returns an empty list."""
    found = given.get(name) if isinstance(given, dict) else None
    if not isinstance(found, list):
        faults.bad(f"{where}: has no list {name!r}, as files of SQuAD have; correct it")
        return []
    return found
