"""Splits text into sentences and code into lines; no character is lost."""

import itertools
import re

# The end of a sentence: . ! or ? with closing quotes and brackets, if white space and no lower-case letter follow.
# A match begins at the first of several stops only (the look-behinds). This and the possessive quantifiers make the
# search linear in the length of the text.
_STOP = re.compile(
    r"""[.!?](?<![.!?]{2})[.!?]*+["'”’»)\]]*+(?=\s++["'“‘«(\[*`]*+[^\W_a-zß-öø-ÿ])"""  # noqa: RUF001
)
_IDEOGRAPHIC_STOP = re.compile(r"[。！？](?<![。！？]{2})[。！？]*+[”’」』）]*+")  # noqa: RUF001
_LAST_WORD = re.compile(r"[\w.]*\Z")
_ABBREVIATIONS = re.compile(
    r"e\.g|i\.e|etc|vs|cf|al|mr|mrs|ms|dr|prof|st|jr|sr|nos?|vol|figs?|eq|sec|ch|pp|eds?|inc|ltd|approx|u\.s|bzw|usw|nr"
    r"|z\.b|d\.h|[a-z]",
    re.IGNORECASE,
)
_CODE = re.compile(r"[=(){}\[\]<>;#@\\|]")
_WRAPPED_CHARS = 50  # a shorter line is taken as complete, not as wrapped at a maximum width


def split_sentences(text: str) -> tuple[str, ...]:
    """Returns the sentences of `text` in order; their concatenation is exactly `text`.

    White space between two sentences is the beginning of the second one, because tokens contain the white space before
    a word. Boundaries are blank lines, line ends outside a wrapped paragraph of prose, the ideographic stops, and . ! ?
    before white space and a capital letter, a digit or a quote, unless after an abbreviation or a single initial.
    """
    if not text:
        return ()
    cuts = {match.end() for match in _STOP.finditer(text) if not _abbreviated(text, match.start())}
    cuts.update(match.end() for match in _IDEOGRAPHIC_STOP.finditer(text))
    cuts.update(_line_ends(text))
    end = len(text.rstrip())  # white space at the end of the text belongs to the last sentence
    bounds = [0, *sorted(cut for cut in cuts if 0 < cut < end), len(text)]
    return tuple(text[start:stop] for start, stop in itertools.pairwise(bounds))


def _line_ends(text: str) -> list[int]:
    """Returns the indices after the last visible character of each line that ends a sentence."""
    ends, start, last, previous = [], 0, 0, ""
    for line in text.split("\n"):
        content = line.strip()
        if not content:
            previous = ""  # no sentence continues after a blank line
        else:
            if last and not (_wrapped(previous) and _wraps(content)):
                ends.append(last)
            last, previous = start + len(line.rstrip()), content
        start += len(line) + 1
    return ends


def _wrapped(line: str) -> bool:
    """Returns whether the sentence of this line may continue on the next: the line is long and is prose, not code."""
    return len(line) >= _WRAPPED_CHARS and len(_CODE.findall(line)) * 20 <= len(line)


def _wraps(line: str) -> bool:
    """Returns whether the line can continue a sentence; it cannot if it is a list item, a heading or a prompt."""
    return line[0].isalnum() or line[0] in "\"'`([“‘«"  # noqa: RUF001


def _abbreviated(text: str, stop: int) -> bool:
    """Returns whether the full stop at index `stop` ends an abbreviation or an initial, and so no sentence."""
    word = _LAST_WORD.search(text, max(0, stop - 8), stop)[0]
    return text[stop] == "." and _ABBREVIATIONS.fullmatch(word) is not None
