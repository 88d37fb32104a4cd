"""Reads words with tags: JSON records of `words` and `tags`, and columns as in the tasks of CoNLL.

A CoNLL file has a word on each line, its tag in the last column, and an empty line between sentences. A tab separates
the columns, or spaces in lines without a tab. Lines that begin with -DOCSTART- are left out, and so are comments: lines
that begin with "# " before the first word of a sentence, unless they have as many columns as the lines of words before.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from lmjax.data.fields import Fields, Header
from lmjax.data.files import Faults, Line, read_file, read_lines, suffix
from lmjax.data.record_format import RecordFormat
from lmjax.data.tag_schemes import Scheme, entities, fault, mark_entities, tags_of
from lmjax.errors import DataError

WORDS, TAGS = "words", "tags"
_SUFFIXES = (".conll", ".txt")
_DOCUMENT = "-DOCSTART-"
# Other white space, such as a no-break space, may be a word.
_WHITE = " \t\r\n"


@dataclasses.dataclass(frozen=True)
class TaggedWords(RecordFormat):
    """Records of `words` and `tags`, in which each word has one tag.

    Attributes:
        scheme: of the tags, which are checked.
        repair: whether tags that are not well formed are written anew in the scheme, from the entities that conlleval
            counts in them; otherwise they are an error.
    """

    scheme: Scheme
    repair: bool

    def reads(self, path: str) -> bool:
        """Returns whether a file of this name has records."""
        return suffix(path) in _SUFFIXES or super().reads(path)

    def records(
        self, path: str, faults: Faults, check_header: Header, max_bytes: int, header: Sequence[str] = ()
    ) -> Iterator[tuple[str, Fields]]:
        """Yields the place of each sentence, the file and the line of its first word, and its words and tags."""
        if super().reads(path):
            yield from super().records(path, faults, check_header, max_bytes, header)
            return

        def read(file: BinaryIO) -> Iterator[tuple[str, Fields]]:
            return _sentences(path, read_lines(path, file, max_bytes), faults)

        yield from read_file(path, read, faults)

    def checked(self, where: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the words and tags of a sentence, the tags repaired if that is wanted."""
        words, tags = values[WORDS], values[TAGS]
        if not self.gold:
            return values
        if len(words) != len(tags):
            raise DataError(f"{where}: {len(words)} words and {len(tags)} tags; give one tag for each word")
        wrong = fault(tags, self.scheme)
        if wrong is None:
            return values
        if self.repair and mark_entities([*tags, "B"]):
            return {**values, TAGS: tags_of(entities(tags), len(tags), self.scheme)}
        number, said = wrong
        raise DataError(
            f"{where}: word {number + 1} ({words[number][:40]!r}): the tag {said}; correct it, or set repair=true or "
            "another scheme"
        )


def _sentences(path: str, lines: Iterator[Line], faults: Faults) -> Iterator[tuple[str, Fields]]:
    """Yields the sentences of a CoNLL file; those with a bad line are left out."""
    rows: list[list[str]] = []
    first, wrong, columns = 0, "", 0
    # The end of the file ends a sentence too.
    for line in itertools.chain(lines, (None,)):
        text = "" if line is None else line.text.strip(_WHITE)
        if line is not None and line.fault:
            wrong = wrong or line.fault
        elif text and not (not rows and _is_left_out(text, columns)):
            row = _row(text)
            columns = columns or len(row)
            if len(row) != columns and not wrong:
                wrong = f"{path}:{line.number}: {len(row)} columns, and the lines before have {columns}; correct it"
            first = first if rows else line.number
            rows.append(row)
        elif not text and (rows or wrong):
            if wrong:
                faults.bad(wrong)
            else:
                yield f"{path}:{first}", _fields(rows, columns)
            rows, wrong = [], ""


def _row(text: str) -> list[str]:
    return (
        [cell.strip(_WHITE) for cell in text.split("\t")]
        if "\t" in text
        else [cell for cell in text.split(" ") if cell]
    )


def _is_left_out(text: str, columns: int) -> bool:
    return text.startswith(_DOCUMENT) or (text.startswith("# ") and len(_row(text)) != columns)


def _fields(rows: list[list[str]], columns: int) -> Fields:
    """Returns the words, and the tags if there are several columns."""
    words = (WORDS, [row[0] for row in rows])
    return Fields([words, (TAGS, [row[-1] for row in rows])] if columns > 1 else [words])
