r"""Constrained decoding: which tokens are allowed next, so that the text matches a regular expression or JSON schema.

After every token the host computes a mask over the vocabulary. The automaton is llguidance's (extra `constrain`), which
builds its states lazily. It was preferred to outlines-core, which runs all tokens through all states in advance: with
50,257 tokens on one core, llguidance compiled `.{1,200}` in 2 ms and outlines-core in 6,200 ms; a schema of four fields
took 1.4 ms and 254 ms; a mask takes llguidance 0.02 to 0.15 ms. llguidance also supports recursive schemas, which no
regular expression can express. Neither needs torch.

The constraint applies to the text after the prompt, as `text.TextStream` returns it. At the beginning of a new text (in
an encoder-decoder, or after a special token), tokenizers whose words start with a space drop the first space when they
decode: it is allowed there and not matched. After other text the space is matched: a pattern for a continuation
should begin with ` ?`. Every tokenisation of a text is allowed, so that sampling keeps the model's probabilities.

The syntax is that of Rust's regex crate, without look-around and back-references; the whole text must match. `\d`
matches ASCII digits only.
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

# White space between JSON tokens is bounded: otherwise a model could generate white space without end.
_LAYOUT = {"whitespace_pattern": r" |\n {0,16}"}
# Characters that the grammar of JSON may require; those of the schema itself are added in `_schema_body`.
_JSON_CHARACTERS = frozenset('{}[]":,-+.0123456789eEtruefalsn')
# Messages of the library, and what to tell the author of the pattern or schema instead.
_IN_OUR_WORDS = (
    (r"oneOf constraints are not supported", "oneOf may allow what two of its schemas allow; write anyOf"),
    (r"lookarounds not supported", r"look-around is not supported, nor is \\b"),
    (r"Unimplemented keys: \[(.*)\]", r"\1 is not implemented; leave it out"),
    (r"Resource '(.*?)' is not present", r"$ref to '\1': nothing is fetched; put it under $defs"),
    (r"Pointer '(.*?)' does not exist", r"$ref to '#\1': there is no such place in it"),
    (r"too (?:big|complex|large)|limit", "it is too large to be compiled; simplify it"),
)
_OF_THE_LIBRARY = re.compile(r"\boptions?\b|\bEnable\b|JsonCompileOptions|\w+::\w+")
# The key under which the library reads its own options from a schema.
_OPTIONS = "x-guidance"
_NOT_SPACE_FIRST = r"/([^ ](?s:.)*)?/"
_SAMPLED_TOKENS = 256


class Constraint:
    """A regular expression or schema that a text must match, compiled on the host.

    Attributes:
        flag: the flag and value that the user gave, for error messages.
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
            stop: ids that end a text; they are allowed exactly where the text may end.
            regex: a regular expression for the whole text.
            schema: a JSON schema as a string of JSON.
            vocab_size: columns of the model's logits; None: the tokenizer's.

        Raises:
            FlagError: it cannot be parsed, no text matches it, or the tokenizer can spell no text that does.
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
        # One grammar for a text that continues other text, and one for a new text.
        grammars = [_grammar(body, schema is not None, dropped) for dropped in ("", spaces)]
        self._behind, self._begins = (self._compile(llguidance, tokenizer, grammar) for grammar in grammars)
        if isinstance(self._behind, FlagError) and isinstance(self._begins, FlagError):
            raise self._behind

    def _compile(self, llguidance: Any, tokenizer: Any, grammar: str) -> Any:
        """Returns the matcher of a grammar; if no text matches it, the error, which `start` raises if needed."""
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        if matcher.is_error():
            return FlagError(f"{self.flag}: {_reason(matcher.get_error())}; {_remedy(self.flag)}")
        trial = matcher.deep_copy()
        if not _mask(trial, self._size)[:-1].any() and not trial.is_accepting():
            return FlagError(
                f"{self.flag}: no text matches it that this tokenizer can spell; {_remedy(self.flag)}, or use a "
                "tokenizer with byte tokens"
            )
        return matcher

    def start(self, context: Sequence[int] = ()) -> ConstraintState:
        """Returns the state of an empty text.

        Args:
            context: the ids before it; only the last one matters.

        Raises:
            FlagError: no text matches after this context; for example, a text that begins with a space may have no
                tokenisation at the beginning of a new text.
        """
        matcher = self._begins if begins_anew(self._vocabulary, context) else self._behind
        if isinstance(matcher, FlagError):
            raise matcher
        return ConstraintState(self, matcher.deep_copy())


class ConstraintState:
    """The state of one text under a constraint. `finished`: the text is complete and cannot be extended."""

    def __init__(self, constraint: Constraint, matcher: Any):
        self._constraint, self._matcher = constraint, matcher
        self.finished = matcher.is_stopped()

    def copy(self) -> ConstraintState:
        """Returns an independent copy of the state."""
        return ConstraintState(self._constraint, self._matcher.deep_copy())

    def allowed(self) -> np.ndarray:
        """Returns bool `[vocab_size]`: the tokens that are allowed next.

        Special tokens are never allowed. Stop ids are allowed where the text may end; after the end only they are.

        Raises:
            DataError: the text cannot continue, because a schema requires text that the tokenizer cannot spell.
        """
        found = np.zeros(self._constraint._rows, np.bool_)
        mask = _mask(self._matcher, self._constraint._size)
        whole = self.finished or self._matcher.is_accepting()
        if not whole and not mask[:-1].any():
            raise DataError(
                f"{self._constraint.flag}: the text cannot continue ({_reason(self._matcher.get_error())}); simplify "
                "it, or use a tokenizer with byte tokens"
            )
        if not self.finished:
            count = min(len(found), len(mask) - 1)
            found[:count] = mask[:count]
        found[list(self._constraint.stop)] = whole
        return found

    def advance(self, token: int) -> None:
        """Extends the text by an allowed token."""
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
    """Returns bool `[size + 1]`: the tokens that the matcher allows; the last entry is the end of the text."""
    return np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), count=size + 1, bitorder="little") > 0


class _Pieces:
    """A vocabulary in the form that llguidance reads: the bytes of each token, then an extra id that ends a text."""

    def __init__(self, pieces: list[bytes]):
        self.tokens = [*pieces, b""]
        self.eos_token_id = len(pieces)
        self.bos_token_id = None
        self.special_token_ids = (len(pieces),)

    def __call__(self, text: bytes) -> list[int]:
        raise NotImplementedError("a grammar that forces no tokens encodes none")


def _usable(pieces: Sequence[bytes], banned: Collection[int]) -> tuple[list[bytes], str]:
    """Returns the tokens' bytes, empty for unusable ones, and the characters a text may have, as ranges of a class.

    The ranges are empty if single-byte tokens can spell every text. Otherwise a text is restricted to characters that
    are tokens of their own, so that the rest of a matching text can be spelled at any point.
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
        # A token with a part of a character is unusable: no token may have the rest of the character.
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
    """Returns the grammar of terminal X: the regular expression, restricted to the characters of `spelled`."""
    if (len(regex) - len(regex.rstrip("\\"))) % 2:
        raise FlagError(f"{flag}: ends in a backslash that escapes nothing; {_remedy(flag)}")
    try:
        pattern = llguidance.regex_to_lark(regex, use_ascii="d")
    except ValueError as e:
        raise FlagError(f"{flag}: {_reason(str(e))}; {_remedy(flag)}") from e
    return f"X: /{pattern}/" + (f" & /[{spelled}]*/" if spelled else "")


def _schema_body(schema: str, spelled: str, flag: str) -> str:
    """Returns the grammar of rule x: the JSON schema."""
    try:
        values = json.loads(schema)
    except (ValueError, RecursionError) as e:
        raise FlagError(f"{flag}: is not JSON ({e}); give a JSON schema, or a file that contains one") from e
    if not isinstance(values, dict):
        raise FlagError(f'{flag}: a JSON schema is an object, such as {{"type": "object"}}; {_remedy(flag)}')
    if _OPTIONS in values:
        raise FlagError(f"{flag}: {_OPTIONS} is not a keyword of JSON schema; leave it out")
    if spelled:
        text = json.dumps(values, ensure_ascii=False)
        missing = sorted(c for c in _JSON_CHARACTERS | set(text) if not re.fullmatch(_python_class(spelled), c))
        if missing:
            raise FlagError(
                f"{flag}: this tokenizer has no token for {' '.join(missing)}, which the text may need; use one "
                "with byte tokens"
            )
    return f"x: %json {json.dumps({_OPTIONS: _LAYOUT} | values)}"


def _python_class(ranges: str) -> str:
    """Returns a Python character class for ranges in the library's notation."""
    return "[" + re.sub(r"\\x\{(\w+)\}", lambda m: re.escape(chr(int(m[1], 16))), ranges) + "]"


def _grammar(body: str, is_rule: bool, spaces: str) -> str:
    """Returns a grammar in the library's notation.

    Args:
        body: the definition of rule x or terminal X.
        is_rule: whether the body is a rule.
        spaces: the spaces that the tokenizer drops before the text: "" none, " ?" one, " *" all.
    """
    if not spaces:
        start = "start: x" if is_rule else "start: X"
    elif is_rule:
        start = f"start: /{spaces}/ x"
    else:
        # The tokenizer drops one space, so a text that begins with a space is generated with two.
        whole = f"(X & {_NOT_SPACE_FIRST})"
        start = "start: T\nT: " + (f'" " X | {whole}' if spaces == " ?" else f"/ */ {whole}")
    return f'%llguidance {{"no_forcing": true}}\n{start}\n{body}'


def _dropped_spaces(vocabulary: Vocabulary) -> tuple[str, set[int]]:
    """Returns which spaces decoding drops before a text, and the space tokens for which this does not hold.

    The former is a regular expression: "" (none), " ?" or " *". An example of the latter: SentencePiece drops its own
    space symbol, but not the byte token of a space.
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
    """Raises FlagError unless a decoded text is the concatenation of its tokens' texts, checked on a sample."""
    ids = vocabulary.text_ids[:: max(1, len(vocabulary.text_ids) // _SAMPLED_TOKENS)].tolist()
    first = a_word(vocabulary)
    if first is None:
        raise FlagError(f"{name}: this tokenizer has no token of letters or digits; use another")
    before = vocabulary.decode([first])
    for i in ids:
        text = _text(vocabulary.pieces[i])
        if text is not None and vocabulary.decode([first, i]) != before + text:
            raise FlagError(
                f"{name}: a decoded text of this tokenizer is not the concatenation of its tokens (as for {text!r}); "
                "use a SentencePiece or byte-level tokenizer"
            )


def _reason(message: str) -> str:
    """Returns one line of the library's message, without mentions of its options and code, which users do not see."""
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
