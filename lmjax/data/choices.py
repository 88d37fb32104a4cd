"""Reads questions with choices: records of a list of choices, and the tables of SWAG, RACE, COPA and their like.

| field | other names | value |
|---|---|---|
| context | article, premise, sent1, ctx | a text; without it, the question stands in its place |
| question | question_stem, sent2 | a text before each choice; may be absent |
| choices | options, endings | a list of texts (in a table as JSON), or {"text": [...], "label": [...]} |
| | choice0, choice1 ...; ending0, ending1 ... | columns of a text each, numbered from 0 or 1, or A, B, ... |
| label | answer, answerKey | the number of the right choice, from 0; its letter, from A; or its text |

Zellers et al. 2018 (arXiv:1808.05326), Lai et al. 2017 (arXiv:1704.04683), Roemmele et al. 2011.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmjax.data.fields import Fields, Header, field_of
from lmjax.data.files import MAX_BYTES, Faults
from lmjax.data.record_format import RecordFormat
from lmjax.errors import DataError

CONTEXT, QUESTION, CHOICES, LABEL = "context", "question", "choices", "label"
_NAMES = {
    CONTEXT: (CONTEXT, "article", "premise", "sent1", "ctx"),
    QUESTION: (QUESTION, "question_stem", "sent2"),
    CHOICES: (CHOICES, "options", "endings"),
    LABEL: (LABEL, "answer", "answerKey"),
}
_COLUMN = re.compile(r"(choice|option|ending|answer)_?(\d{1,2}|[A-Z])")
_NEED = (
    "a record needs context or question, choices (a list of texts, or the columns choice0, choice1 ...) and label (the "
    "number of the right choice, from 0, or its text)"
)


@dataclasses.dataclass(frozen=True)
class Choices(RecordFormat):
    """Records with a context, choices, and the number of the right choice.

    Attributes:
        most: choices that a record may have.
    """

    most: int

    def records(
        self,
        path: str,
        faults: Faults,
        check_header: Header,
        max_bytes: int = MAX_BYTES,
        header: Sequence[str] = (),
    ) -> Iterator[tuple[str, Fields]]:
        """Yields the place of each record and its fields; the header of a table may have any of the known names."""

        def check(where: str, names: Sequence[str]) -> None:
            check_header(where, [*names, *(name for name in _renamed(where, names) if name not in names)])

        yield from super().records(path, faults, check, max_bytes, header)

    def arranged(self, where: str, fields: Fields) -> Fields:
        """Returns the context, the question, the choices and the number of the right one."""
        found = {name: _found(where, fields, name) for name in _NAMES}
        letters: list[str] = []
        if found[CHOICES] is None:
            choices: Any = _from_columns(where, fields)
        else:
            choices = _parsed(where, found[CHOICES], field_of(where, fields, found[CHOICES], _NEED))
            if isinstance(choices, dict):
                choices, letters = choices.get("text"), choices.get("label")
                if not isinstance(letters, list) or not isinstance(choices, list) or len(letters) != len(choices):
                    raise DataError(f"{where}: {found[CHOICES]!r} has not one 'label' for each 'text'; {_NEED}")
        texts = {
            name: field_of(where, fields, found[name], _NEED) for name in (CONTEXT, QUESTION) if found[name] is not None
        }
        if not texts:
            raise DataError(f"{where}: has neither context nor question; {_NEED}")
        if _blank(texts.get(CONTEXT, "")):
            # The question alone is what the choices answer.
            texts = {CONTEXT: texts.get(QUESTION, "")}
        made: dict[str, Any] = {**texts, CHOICES: choices}
        if self.gold:
            if found[LABEL] is None:
                raise DataError(f"{where}: no 'label' among the fields {', '.join(fields)[:200]}; {_NEED}")
            if isinstance(choices, list):
                made[LABEL] = _label(where, field_of(where, fields, found[LABEL], _NEED), choices, letters)
        return Fields(list(made.items()))

    def checked(self, where: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the values of a record, which has at least two choices and not too many."""
        count = len(values[CHOICES])
        if count < 2:
            raise DataError(f"{where}: {count} choice(s); give at least two, or remove the record")
        if count > self.most:
            raise DataError(
                f"{where}: {count} choices, and a record may have {self.most}; remove some, or set most_choices={count}"
            )
        return values


def _renamed(where: str, names: Sequence[str]) -> list[str]:
    """Returns the names of the columns that `arranged` makes of a table with these columns."""
    fields = Fields([(name, "") for name in dict.fromkeys(names)])
    made = [name for name in _NAMES if _found(where, fields, name) is not None]
    if CHOICES not in made and _columns(fields):
        made.append(CHOICES)
    if CONTEXT not in made and QUESTION in made:
        made.append(CONTEXT)
    return made


def _found(where: str, fields: Fields, name: str) -> str | None:
    """Returns the name in a file of one of the fields; None: the record does not have it, or it is null.

    Raises:
        DataError: it has two of them.
    """
    there = [each for each in _NAMES[name] if fields.get(each) is not None]
    if len(there) > 1:
        raise DataError(f"{where}: {there[0]!r} and {there[1]!r} are both a {name}; rename one")
    return there[0] if there else None


def _blank(given: Any) -> bool:
    return isinstance(given, str) and not given.strip()


def _columns(fields: Fields) -> list[tuple[str, str]]:
    """Returns the names of numbered columns of choices and their numbers or letters, in their order."""
    found = [(name, match) for name in fields if (match := _COLUMN.fullmatch(name))]
    of_one = [(name, m[2]) for name, m in found if m[1] == found[0][1][1]]
    return sorted(of_one, key=lambda each: (len(each[1]), each[1]))


def _from_columns(where: str, fields: Fields) -> list[Any]:
    """Returns the choices in numbered columns; empty cells after the last one are no choices.

    Raises:
        DataError: there are none, or one is left out.
    """
    columns = _columns(fields)
    if not columns:
        raise DataError(f"{where}: no 'choices' among the fields {', '.join(fields)[:200]}; {_NEED}")
    marks = [mark for _, mark in columns]
    numbers = [int(mark) if mark.isdigit() else ord(mark) - ord("A") for mark in marks]
    if numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise DataError(f"{where}: the columns of choices are {', '.join(n for n, _ in columns)}; one is missing")
    choices = [field_of(where, fields, name, _NEED) for name, _ in columns]
    while choices and (choices[-1] is None or _blank(choices[-1])):
        choices.pop()
    return choices


def _parsed(where: str, name: str, given: Any) -> Any:
    """Returns choices; a text, as all cells of a table are, is parsed as JSON.

    Raises:
        DataError: they are not a list, or an object of two lists.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{where}: {name!r} is {given[:40]!r}, which is not a list in JSON; {_NEED}") from e
    if not isinstance(given, list | dict):
        raise DataError(f"{where}: {name!r} is {str(given)[:40]!r}, not a list; {_NEED}")
    return given


def _label(where: str, given: Any, choices: Sequence[Any], letters: Sequence[Any]) -> int:
    """Returns the number of the right choice.

    Raises:
        DataError: it names no choice, or one as a text and another as a number.
    """
    if isinstance(given, int) and not isinstance(given, bool) and not letters:
        named = {given} & set(range(len(choices)))
    else:
        # With marks of its own, a file counts by them alone.
        marks = list(map(str, letters)) or [*map(str, range(len(choices)))]
        more = [] if letters else [chr(ord("A") + i) for i in range(min(26, len(choices)))]
        named = {i for of in (marks, more) for i, mark in enumerate(of) if mark == str(given).strip()}
        if not letters:
            named |= {i for i, choice in enumerate(choices) if isinstance(given, str) and choice == given}
    if not named:
        known = ", ".join(map(str, letters)) or f"0 to {len(choices) - 1}"
        raise DataError(f"{where}: 'label' is {str(given)[:40]!r}, and there are the choices {known}; {_NEED}")
    if len(named) > 1:
        both = " and ".join(map(str, sorted(named)))
        raise DataError(
            f"{where}: 'label' is {str(given)[:40]!r}, which can be the choices {both}; give its number as a number of "
            "JSON (from 0)"
        )
    return named.pop()
