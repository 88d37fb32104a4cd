"""Splitting a text into sentences, and code into lines, without losing a character."""

import itertools
import re

# A sentence's end: . ! ? with closing quotes and brackets, then white space, then anything but a small letter.
# Possessive quantifiers and the look-behinds (only the first of several stops counts) keep the search linear.
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
_WRAPPED_CHARS = 50  # a shorter line was not broken for lack of room


def split_sentences(text: str) -> tuple[str, ...]:
    """The sentences of `text` in order; joined, they are `text` exactly.

    White space between two sentences belongs to the front of the second one, so that the tokens of the sentences are
    those of the running text. Boundaries are blank lines, line ends (but not inside a wrapped paragraph of prose), and
    . ! ? before white space and a capital, a digit or a quote, unless after an abbreviation or a lone initial.
    """
    if not text:
        return ()
    cuts = {match.end() for match in _STOP.finditer(text) if not _abbreviated(text, match.start())}
    cuts.update(match.end() for match in _IDEOGRAPHIC_STOP.finditer(text))
    cuts.update(_line_ends(text))
    end = len(text.rstrip())  # white space at the end of the text is no sentence
    bounds = [0, *sorted(cut for cut in cuts if 0 < cut < end), len(text)]
    return tuple(text[start:stop] for start, stop in itertools.pairwise(bounds))


def _line_ends(text: str) -> list[int]:
    """Where lines end a sentence: after the last character that is not white space."""
    ends, start, last, previous = [], 0, 0, ""
    for line in text.split("\n"):
        content = line.strip()
        if not content:
            previous = ""  # after a blank line nothing goes on
        else:
            if last and not (_wrapped(previous) and _wraps(content)):
                ends.append(last)
            last, previous = start + len(line.rstrip()), content
        start += len(line) + 1
    return ends


def _wrapped(line: str) -> bool:
    """Whether the line looks like one of a paragraph that goes on: long, and prose rather than code."""
    return len(line) >= _WRAPPED_CHARS and len(_CODE.findall(line)) * 20 <= len(line)


def _wraps(line: str) -> bool:
    """Whether the line can go on with a sentence: it is no item of a list, no heading, no prompt."""
    return line[0].isalnum() or line[0] in "\"'`([“‘«"  # noqa: RUF001


def _abbreviated(text: str, stop: int) -> bool:
    """Whether the full stop at `stop` ends an abbreviation or an initial rather than a sentence."""
    word = _LAST_WORD.search(text, max(0, stop - 8), stop)[0]
    return text[stop] == "." and _ABBREVIATIONS.fullmatch(word) is not None
