r"""Constrained decoding: which tokens may come next, so that the text matches a regular expression or a JSON schema.

After every token the host computes a mask over the vocabulary. The automaton is llguidance's (extra `constrain`), whose
derivatives are built lazily. It was taken over outlines-core, which walks all tokens through all states beforehand: at
50,257 tokens, on one core, llguidance compiled `.{1,200}` in 2 ms and outlines-core in 6,200 ms, a schema of four
fields in 1.4 ms and 254 ms, and a mask takes llguidance 0.02 to 0.15 ms. It also reads recursive schemas, which no
regular expression can express. Neither needs torch.

What is matched is the text behind the prompt, as `text.TextStream` gives it out. Where a text begins anew (in an
encoder-decoder, or behind a special token), tokenizers that mark a word by a space in front of it drop the text's
first space: there it may stand, and is not counted. Behind other text it counts: a pattern for a continuation
begins with ` ?`. Every spelling of a text is allowed, so that sampling keeps the model's own odds among them.

The syntax is that of Rust's regex crate: no look-around and no back-references; the whole text must match. `\d` is a
digit of ASCII.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import DataError, FlagError
from lmjax.inference.generate.text import a_word, begins_anew

# JSON between whose tokens white space was unbounded would let a model write white space alone.
_LAYOUT = {"whitespace_pattern": r" |\n {0,16}"}
# What the grammar of JSON may force; that it lacks nothing of a schema is checked beside.
_JSON_CHARACTERS = frozenset('{}[]":,-+.0123456789eEtruefalsn')
# What the library says, and what it means to whoever wrote the schema.
_IN_OUR_WORDS = (
    (r"oneOf constraints are not supported", "oneOf may allow what two of its schemas allow; write anyOf"),
    (r"lookarounds not supported", r"look-around is not supported, nor is \\b"),
    (r"Unimplemented keys: \[(.*)\]", r"\1 is not implemented; leave it out"),
    (r"Resource '(.*?)' is not present", r"$ref to '\1': nothing is fetched; put it under $defs"),
    (r"Pointer '(.*?)' does not exist", r"$ref to '#\1': there is no such place in it"),
    (r"too (?:big|complex|large)|limit", "it is too large to be compiled; simplify it"),
)
_OF_THE_LIBRARY = re.compile(r"\boptions?\b|\bEnable\b|JsonCompileOptions|\w+::\w+")
# Options of the library that it reads from a schema.
_OPTIONS = "x-guidance"
_NOT_SPACE_FIRST = r"/([^ ](?s:.)*)?/"
_SAMPLED_TOKENS = 256


class Constraint:
    """What a text must match; compiled on the host, before any model is.

    Attributes:
        flag: what the user gave, as errors name it.
        stop: the ids that end a text.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stop: Collection[int],
        *,
        regex: str | None = None,
        schema: str | None = None,
        vocab_size: int | None = None,
    ):
        """Compiles the regular expression or the schema.

        Args:
            vocabulary: of the model's tokenizer.
            stop: ids that end a text; they are allowed exactly where it may end.
            regex: what the whole text must match.
            schema: the JSON of a JSON schema.
            vocab_size: columns of the model's logits; None: the tokenizer's.

        Raises:
            FlagError: it cannot be parsed, no text matches it, or the tokenizer spells none that does.
        """
        if (regex is None) == (schema is None):
            raise FlagError("--regex and --json_schema: a text is constrained by one of them; give one")
        name, given = ("--regex", regex) if schema is None else ("--json_schema", schema)
        self.flag = f"{name}={given if len(given) <= 80 else given[:77] + '...'}"
        self.stop = tuple(stop)
        self._vocabulary = vocabulary
        self._size = vocabulary.vocab_size
        self._rows = vocab_size or self._size
        llguidance = _library(name)
        _check_spelling(vocabulary, name)
        spaces, odd = _dropped_spaces(vocabulary)
        pieces, spelled = _usable(vocabulary.pieces, {*self.stop, *odd})
        tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Pieces(pieces)), n_vocab=len(pieces) + 1)
        if schema is None:
            body = _regex_body(llguidance, regex, spelled, self.flag)
        else:
            body = _schema_body(schema, spelled, self.flag)
        # Behind other text, and where a text begins.
        grammars = [_grammar(body, schema is not None, dropped) for dropped in ("", spaces)]
        self._behind, self._begins = (self._compile(llguidance, tokenizer, grammar) for grammar in grammars)
        if isinstance(self._behind, FlagError) and isinstance(self._begins, FlagError):
            raise self._behind

    def _compile(self, llguidance: Any, tokenizer: Any, grammar: str) -> Any:
        """Returns the matcher of a grammar; if no text matches it, the error, for whoever wants to start there."""
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        if matcher.is_error():
            return FlagError(f"{self.flag}: {_reason(matcher.get_error())}; {_remedy(self.flag)}")
        trial = matcher.deep_copy()
        if not _mask(trial, self._size)[:-1].any() and not trial.is_accepting():
            return FlagError(
                f"{self.flag}: no text matches it that this tokenizer can spell; {_remedy(self.flag)}, or take a "
                "tokenizer with byte pieces"
            )
        return matcher

    def start(self, context: Sequence[int] = ()) -> ConstraintState:
        """Returns the state of a text of which nothing is written.

        Args:
            context: the ids in front of it, of which the last counts.

        Raises:
            FlagError: no text matches there; one that begins with a space may have no spelling where a text begins.
        """
        matcher = self._begins if begins_anew(self._vocabulary, context) else self._behind
        if isinstance(matcher, FlagError):
            raise matcher
        return ConstraintState(self, matcher.deep_copy())


class ConstraintState:
    """What one text has been so far. `finished`: it is whole, and nothing can follow."""

    def __init__(self, constraint: Constraint, matcher: Any):
        self._constraint, self._matcher = constraint, matcher
        self.finished = matcher.is_stopped()

    def copy(self) -> ConstraintState:
        """Returns a state that goes its own way from here, as beams do."""
        return ConstraintState(self._constraint, self._matcher.deep_copy())

    def allowed(self) -> np.ndarray:
        """Returns bool `[vocab_size]`: the tokens that may come next.

        Special tokens never; the stop ids where the text may end, and nothing else where it is finished.

        Raises:
            DataError: the text cannot go on; a schema forces what the tokenizer cannot spell.
        """
        found = np.zeros(self._constraint._rows, np.bool_)
        mask = _mask(self._matcher, self._constraint._size)
        whole = self.finished or self._matcher.is_accepting()
        if not whole and not mask[:-1].any():
            raise DataError(
                f"{self._constraint.flag}: the text cannot go on ({_reason(self._matcher.get_error())}); simplify it, "
                "or take a tokenizer with byte pieces"
            )
        if not self.finished:
            count = min(len(found), len(mask) - 1)
            found[:count] = mask[:count]
        found[list(self._constraint.stop)] = whole
        return found

    def advance(self, token: int) -> None:
        """Goes on by a token that is allowed."""
        if token in self._constraint.stop:
            self.finished = True
            return
        accepted = self._matcher.consume_token(token)
        assert accepted, f"{self._constraint.flag}: token {token} is not allowed here"
        self.finished = self._matcher.is_stopped()


def _library(name: str) -> Any:
    try:
        import llguidance
    except ImportError as e:
        raise FlagError(f"{name} needs the library llguidance: pip install 'lmjax[constrain]'") from e
    return llguidance


def _mask(matcher: Any, size: int) -> np.ndarray:
    """Returns bool `[size + 1]`; the last is the end of the text."""
    return np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), count=size + 1, bitorder="little") > 0


class _Pieces:
    """A vocabulary as llguidance reads it; behind the pieces is an id of its own that ends a text."""

    def __init__(self, pieces: list[bytes]):
        self.tokens = [*pieces, b""]
        self.eos_token_id = len(pieces)
        self.bos_token_id = None
        self.special_token_ids = (len(pieces),)

    def __call__(self, text: bytes) -> list[int]:
        raise NotImplementedError("a grammar that forces no tokens encodes none")


def _usable(pieces: Sequence[bytes], banned: Collection[int]) -> tuple[list[bytes], str]:
    """Returns the pieces to write with, and the characters that can always be spelled, as ranges of a class.

    The ranges are empty if every text can be spelled, by byte pieces. Else a text is held to characters that are pieces
    of their own: whatever has been written, the rest of a matching text can then be spelled too.
    """
    pieces = [b"" if i in banned else piece for i, piece in enumerate(pieces)]
    single = {piece[0] for piece in pieces if len(piece) == 1}
    all_bytes = single >= {*range(0x80, 0xC0), *range(0xC2, 0xF5)}
    if all_bytes and single >= set(range(0x80)):
        return pieces, ""
    points = {b for b in single if b < 0x80}
    if all_bytes:
        points |= {0x80}
    else:
        texts = [_text(piece) for piece in pieces]
        # A part of a character could be followed by a part that no piece has.
        pieces = [b"" if text is None else piece for piece, text in zip(pieces, texts, strict=True)]
        points |= {ord(text) for text in texts if text is not None and len(text) == 1}
    ranges = []
    for point in sorted(points):
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    if all_bytes:
        ranges[-1][1] = 0x10FFFF
    return pieces, "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in ranges)


def _text(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def _regex_body(llguidance: Any, regex: str, spelled: str, flag: str) -> str:
    """Returns the grammar of terminal X, the regular expression, held to what can be spelled."""
    if (len(regex) - len(regex.rstrip("\\"))) % 2:
        raise FlagError(f"{flag}: ends in a backslash that escapes nothing; {_remedy(flag)}")
    try:
        pattern = llguidance.regex_to_lark(regex, use_ascii="d")
    except ValueError as e:
        raise FlagError(f"{flag}: {_reason(str(e))}; {_remedy(flag)}") from e
    return f"X: /{pattern}/" + (f" & /[{spelled}]*/" if spelled else "")


def _schema_body(schema: str, spelled: str, flag: str) -> str:
    """Returns the grammar of rule x, the schema."""
    try:
        values = json.loads(schema)
    except (ValueError, RecursionError) as e:
        raise FlagError(f"{flag}: is no JSON ({e}); give a JSON schema, or the file that holds one") from e
    if not isinstance(values, dict):
        raise FlagError(f'{flag}: a JSON schema is an object, such as {{"type": "object"}}; {_remedy(flag)}')
    if _OPTIONS in values:
        raise FlagError(f"{flag}: {_OPTIONS} is no keyword of JSON schema; leave it out")
    if spelled:
        text = json.dumps(values, ensure_ascii=False)
        missing = sorted(c for c in _JSON_CHARACTERS | set(text) if not re.fullmatch(_python_class(spelled), c))
        if missing:
            raise FlagError(
                f"{flag}: this tokenizer has no token for {' '.join(missing)}, which the text may need; take one "
                "with byte pieces"
            )
    return f"x: %json {json.dumps({_OPTIONS: _LAYOUT} | values)}"


def _python_class(ranges: str) -> str:
    """Returns a character class of Python of ranges as the library writes them."""
    return "[" + re.sub(r"\\x\{(\w+)\}", lambda m: re.escape(chr(int(m[1], 16))), ranges) + "]"


def _grammar(body: str, is_rule: bool, spaces: str) -> str:
    """Returns a grammar of the library.

    Args:
        body: of rule x or terminal X.
        is_rule: whether it is a rule.
        spaces: what a tokenizer drops in front of the text: "" nothing, " ?" a space, " *" every space.
    """
    if not spaces:
        start = "start: x" if is_rule else "start: X"
    elif is_rule:
        start = f"start: /{spaces}/ x"
    else:
        # One space is dropped where there is one: a text that begins with a space is written with two.
        whole = f"(X & {_NOT_SPACE_FIRST})"
        start = "start: T\nT: " + (f'" " X | {whole}' if spaces == " ?" else f"/ */ {whole}")
    return f'%llguidance {{"no_forcing": true}}\n{start}\n{body}'


def _dropped_spaces(vocabulary: Vocabulary) -> tuple[str, set[int]]:
    """Returns which spaces in front of a text its decoding drops, and the tokens for a space that do not follow it.

    The former is a regular expression: "" (none), " ?" or " *". SentencePiece drops its own space, and not that of
    the byte piece.
    """
    pieces, word = vocabulary.pieces, a_word(vocabulary)
    plain = [i for i, piece in enumerate(pieces) if piece == b" "]
    spaced = [i for i, piece in enumerate(pieces) if piece[:1] == b" " and piece.strip()][:1] or plain

    def drops(*ids: int) -> bool:
        return not vocabulary.decode([*ids, word]).startswith(" ")

    if not spaced:
        return "", set()
    odd = {i for i in plain if drops(i) != drops(spaced[0])}
    space = next((i for i in plain if i not in odd), None)
    if not drops(spaced[0]):
        return "", odd
    return (" *" if space is not None and drops(space, space) else " ?"), odd


def _check_spelling(vocabulary: Vocabulary, name: str) -> None:
    """Raises FlagError unless a text is what its tokens stand for, one behind the other."""
    ids = vocabulary.text_ids[:: max(1, len(vocabulary.text_ids) // _SAMPLED_TOKENS)].tolist()
    first = a_word(vocabulary)
    if first is None:
        raise FlagError(f"{name}: this tokenizer has no token of letters or digits; take another")
    before = vocabulary.decode([first])
    for i in ids:
        text = _text(vocabulary.pieces[i])
        if text is not None and vocabulary.decode([first, i]) != before + text:
            raise FlagError(
                f"{name}: this tokenizer does not write its tokens one behind the other (as for {text!r}), so that "
                "what they spell cannot be told; take a SentencePiece or byte-level tokenizer"
            )


def _reason(message: str) -> str:
    """Returns one line of what the library says, in words that hold here: its options and its code do not exist."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["nothing may follow"]
    found = next((line for line in lines if line.startswith("error: ")), lines[0])
    found = re.sub(r"^(error: |at \d+\(\d+\): |failed to compile JSON schema: )+", "", found)
    for pattern, said in _IN_OUR_WORDS:
        if match := re.search(pattern, found):
            return match.expand(said)
    sentences = re.split(r"(?<=[.;]) ", found)
    return " ".join(s for s in sentences if not _OF_THE_LIBRARY.search(s)) or "it is not implemented"


def _remedy(flag: str) -> str:
    return "change the pattern" if flag.startswith("--regex") else "change the schema"
