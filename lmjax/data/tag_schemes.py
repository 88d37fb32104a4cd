"""Tags of words that mark entities: B-person begins one, I-person is inside, O is outside.

In BIO (IOB2; Tjong Kim Sang and Veenstra 1999, arXiv:cs/9907006) every entity begins with B. In BIOES it also ends with
E, and one of a single word is S (Ratinov and Roth 2009, section 4.1, who call it BILOU).
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from lmjax.errors import DataError

Scheme = Literal["none", "bio", "bioes"]
OUTSIDE = "O"
_TAG = re.compile(r"O|[BIES](-.+)?", re.DOTALL)
_PARTS = {"bio": "BI", "bioes": "BIES"}
_ENDED = ("O", "E", "S")


class Entity(NamedTuple):
    """An entity: its type, and the numbers of its first word and of the word after its last one."""

    type: str
    start: int
    end: int


def mark_entities(labels: Sequence[str]) -> bool:
    """Returns whether all labels are O, or B, I, E or S with or without a type, and some are not O."""
    return all(map(_TAG.fullmatch, labels)) and any(label != OUTSIDE for label in labels)


def entities(tags: Sequence[str]) -> list[Entity]:
    """Returns the entities of a sentence in order, from tags in IOB1, IOB2 (BIO) or BIOES.

    An entity begins at B or S, where the type changes, and where the word before is O, E or S: so a sequence that is
    not well formed, as a model may predict, has entities too, those that conlleval counts. Tags without a type ("B")
    have the type "".

    Raises:
        DataError: a tag is neither O nor begins with B, I, E or S.
    """
    found: list[Entity] = []
    before, type_before = OUTSIDE, ""
    for i, tag in enumerate(tags):
        if not _TAG.fullmatch(tag):
            raise DataError(f"tag {i} is {tag!r}; tags are O, or B, I, E or S with a type, such as B-person")
        part, _, kind = tag.partition("-")
        if part != OUTSIDE and (part in "BS" or before in _ENDED or kind != type_before):
            found.append(Entity(kind, i, i + 1))
        elif part != OUTSIDE:
            found[-1] = found[-1]._replace(end=i + 1)
        before, type_before = part, kind
    return found


def tags_of(found: Sequence[Entity], length: int, scheme: Scheme) -> tuple[str, ...]:
    """Returns the tags of a sentence of `length` words, in "bio" or "bioes"."""
    tags = [OUTSIDE] * length
    for kind, start, end in found:
        parts = ["B", *"I" * (end - start - 1)]
        if scheme == "bioes":
            parts[-1] = "E" if end - start > 1 else "S"
        tags[start:end] = [f"{part}-{kind}" if kind else part for part in parts]
    return tuple(tags)


def fault(tags: Sequence[str], scheme: Scheme) -> tuple[int, str] | None:
    """Returns the number of the first word with a wrong tag and what is wrong with it; None: the tags are right."""
    if scheme == "none":
        return None
    return next(_faults(tags, scheme), None)


def _faults(tags: Sequence[str], scheme: Scheme) -> Iterator[tuple[int, str]]:
    open_type = None
    for i, tag in enumerate((*tags, OUTSIDE)):
        part, _, kind = tag.partition("-")
        if not _TAG.fullmatch(tag) or part not in (OUTSIDE, *_PARTS[scheme]):
            yield i, f"{tag!r} is no tag of {scheme}: they are O and {', '.join(f'{p}-TYPE' for p in _PARTS[scheme])}"
        elif part in "IE" and open_type != kind:
            yield (
                i,
                f"{tag!r} stands after {tags[i - 1]!r}, and no entity of this type is open"
                if i
                else (f"{tag!r} is the first tag, and no entity is open"),
            )
        elif scheme == "bioes" and open_type is not None and part not in "IE":
            yield i - 1, f"{tags[i - 1]!r} is the last tag of its entity, which must end with E, or be S"
        goes_on = part in ("B", "I")
        open_type = kind if goes_on else None
