"""Constrained decoding: all allowed texts match, all matching texts are allowed, and other input is refused early."""

import json
import re
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from lmjax.data.fast_tokenizer import TOKENIZER, FastTokenizer
from lmjax.data.tokenizer import TokenizerConfig, train_tokenizer
from lmjax.errors import DataError, FlagError
from lmjax.inference.generate.constrain import Constraint
from lmjax.inference.generate.text import TextStream
from tests.inference.tokenizers import MAKERS, tokenizer

pytest.importorskip("llguidance")

KINDS = [kind for kind in MAKERS if kind != "word_piece"]
PATTERNS = (
    r"\d{4}-\d{2}-\d{2}",
    r" ?(yes|no)(, because [a-z ]{1,30})?\.",
    r"  x{2,3}\n[ \t]*",
    r"(快速|狐狸|Ä){1,4}e?",
    r".{0,12}",
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "count": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "kind": {"enum": ["a", "two words"]},
        "next": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "count", "kind"],
    "additionalProperties": False,
}


def walk(constraint, kind, rng, context=(), limit=200):
    """Returns a text drawn uniformly from allowed tokens, which ends after `limit` tokens if it may; and its ids."""
    vocabulary, state, ids = tokenizer(kind), constraint.start(context), []
    stream = TextStream(vocabulary, context)
    text = ""
    while not state.finished:
        allowed = np.flatnonzero(state.allowed())
        assert len(allowed), f"no token is allowed after {text!r}"
        stop = [i for i in constraint.stop if i in allowed]
        ids.append(int(stop[0]) if stop and len(ids) > limit else int(rng.choice(allowed)))
        assert len(ids) < 10 * limit
        state.advance(ids[-1])
        if ids[-1] not in constraint.stop:
            text += stream.push(ids[-1])
    return text + stream.finish(), ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_whatever_is_drawn_matches_behind_a_text_and_where_one_begins(kind, pattern):
    vocabulary, rng = tokenizer(kind), np.random.default_rng(0)
    constraint = Constraint(vocabulary, [vocabulary.eos_id], regex=pattern, vocab_size=vocabulary.vocab_size + 28)
    prompt = vocabulary.encode("The answer:")
    spelled = kind != "foreign" or pattern[0] != " " or pattern[1] == "?"
    for context in ((), prompt, [*prompt, vocabulary.eos_id]) if spelled else (prompt,):
        for _ in range(4):
            text, ids = walk(constraint, kind, rng, context)
            assert re.fullmatch(pattern, text), (text, ids, context)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_drawn_is_json_of_the_schema(kind):
    vocabulary, rng = tokenizer(kind), np.random.default_rng(1)
    schema = SCHEMA | {"description": "x"}
    constraint = Constraint(vocabulary, [vocabulary.eos_id], schema=json.dumps(schema))
    for context in ((), vocabulary.encode("It is ")):
        text, _ = walk(constraint, kind, rng, context, limit=60)
        value = json.loads(text)
        assert set(value) - {"next"} == {"name", "count", "kind"}
        assert isinstance(value["name"], str)
        assert len(value["name"]) <= 6
        assert all(isinstance(n, int) for n in value["count"])
        assert value["kind"] in ("a", "two words")
        assert value.get("next") in (None, True, False)


@pytest.mark.parametrize("layout", [{}, {"separators": (",", ":")}, {"indent": 2}, {"indent": 4}], ids=str)
def test_json_may_be_laid_out_as_it_usually_is_and_never_in_white_space_alone(layout):
    vocabulary = tokenizer("bpe")
    constraint = Constraint(vocabulary, [vocabulary.eos_id], schema=json.dumps(SCHEMA))
    text = json.dumps({"name": "Ärger", "count": [1, -2], "kind": "a"}, ensure_ascii=False, **layout)
    state = constraint.start()
    for i in vocabulary.encode(text):
        assert state.allowed()[i], vocabulary.decode([i])
        state.advance(i)
    assert state.finished
    state, space = constraint.start(), vocabulary.pieces.index(b" ")
    state.advance(vocabulary.encode("{")[0])
    state.advance(space)
    assert not state.allowed()[space]


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_of_a_matching_text_is_allowed_as_the_tokenizer_cuts_it(kind):
    """Otherwise the constraint would force tokenisations that the model has never seen."""
    vocabulary = tokenizer(kind)
    constraint = Constraint(vocabulary, [vocabulary.eos_id], regex=r"import \w+\.(path|name), \d+: .*")
    ids = vocabulary.encode("import module.path, 3501: The quick")
    context = () if vocabulary.pieces[ids[0]][:1] == b" " else vocabulary.encode(": ")
    state = constraint.start(context)
    for i in ids:
        assert state.allowed()[i], vocabulary.decode([i])
        assert not state.finished
        state.advance(i)
    assert state.allowed()[vocabulary.eos_id]


def test_only_text_is_allowed_and_the_stop_ids_exactly_where_the_text_may_end():
    vocabulary = tokenizer("bpe")
    stop = [vocabulary.eos_id, vocabulary.sep_id]
    constraint = Constraint(vocabulary, stop, regex="a+", vocab_size=800)
    state = constraint.start()
    assert state.allowed().shape == (800,)
    a = vocabulary.pieces.index(b"a")
    seen = []
    for _ in range(3):
        allowed = state.allowed()
        seen.append(allowed[stop].tolist())
        spelled = {vocabulary.pieces[i] for i in np.flatnonzero(allowed) if i not in stop}
        assert b"a" in spelled
        assert all(set(piece) == {ord("a")} for piece in spelled)
        state.advance(a)
    assert seen == [[False, False], [True, True], [True, True]]
    state.advance(stop[1])
    assert state.finished
    assert np.flatnonzero(state.allowed()).tolist() == sorted(stop)


def test_a_text_that_cannot_grow_is_finished_without_a_stop_id():
    vocabulary = tokenizer("char")
    state = Constraint(vocabulary, [], regex="ab").start()
    for letter in (b"a", b"b"):
        assert not state.finished
        state.advance(vocabulary.pieces.index(letter))
    assert state.finished
    assert not state.allowed().any()


def test_a_stop_id_that_is_text_ends_a_text_and_is_no_part_of_it():
    vocabulary = tokenizer("bpe")
    line_feed = vocabulary.encode("\n")[0]
    state = Constraint(vocabulary, [line_feed], regex="a|\n\n").start()
    allowed = state.allowed()
    assert not allowed[line_feed]
    state.advance(vocabulary.pieces.index(b"a"))
    assert state.finished
    vocabulary = tokenizer("char")
    with pytest.raises(FlagError, match="no text matches it that this tokenizer can spell"):
        Constraint(vocabulary, vocabulary.encode("\n"), regex="a\nb")


def test_a_copy_goes_its_own_way():
    vocabulary = tokenizer("char")
    a, b = (vocabulary.pieces.index(letter) for letter in (b"a", b"b"))
    state = Constraint(vocabulary, [vocabulary.eos_id], regex="aa|bb").start()
    other = state.copy()
    state.advance(a)
    other.advance(b)
    assert np.flatnonzero(state.allowed()).tolist() == [a]
    assert np.flatnonzero(other.allowed()).tolist() == [b]


def test_a_text_leads_into_no_dead_end_where_a_character_has_no_token():
    """Without byte tokens, `~` cannot be spelled: of `a~|ab` and `a[~b]` only `ab` remains."""
    vocabulary = tokenizer("char")
    assert b"~" not in vocabulary.pieces
    for pattern in ("a~|b~|ab", "a[~b]"):
        text, _ = walk(Constraint(vocabulary, [vocabulary.eos_id], regex=pattern), "char", np.random.default_rng(0))
        assert text == "ab"


def test_no_part_of_a_character_is_written_that_has_no_other_part():
    fast = Tokenizer(models.BPE(vocab={"a": 0, "Ã": 1, "Ã©": 2}, merges=[]))
    fast.decoder = decoders.ByteLevel()
    vocabulary = FastTokenizer({TOKENIZER: fast.to_str().encode()}, {"extra_special_tokens": []})
    assert vocabulary.pieces == [b"a", b"\xc3", "é".encode()]
    assert Constraint(vocabulary, [], regex="é|a").start().allowed().tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bpe", {"regex": "("}, r"--regex=\(: .*unclosed group; change the pattern"),
        ("bpe", {"regex": "a\\"}, r"--regex=a\\: ends in a backslash"),
        ("bpe", {"regex": "a(?=b)"}, r"--regex=a\(\?=b\): .*look-around.*not supported"),
        ("bpe", {"regex": "[a&&b]"}, r"--regex=\[a&&b\]: no text matches it"),
        ("char", {"regex": "[a-z]+~"}, r"--regex=\[a-z\]\+~: no text matches it that this tokenizer can spell"),
        ("word_piece", {"regex": "a"}, r"--regex: a decoded text of this tokenizer is not the concatenation"),
        ("bpe", {"schema": "{'a'"}, r"--json_schema=\{'a': is not JSON"),
        ("bpe", {"schema": "[" * 100_000}, r"--json_schema=\[{77}\.\.\.: is not JSON"),
        ("bpe", {"schema": "3"}, r"--json_schema=3: a JSON schema is an object"),
        ("bpe", {"schema": '{"type": "foo"}'}, r"--json_schema=.*Invalid type: foo"),
        ("bpe", {"schema": '{"enum": []}'}, r"--json_schema=.*Unsatisfiable"),
        ("bpe", {"schema": '{"minimum": 3, "maximum": 1, "type": "integer"}'}, r"--json_schema=.*greater than"),
        ("bpe", {"schema": '{"not": {}}'}, r"--json_schema=.*not"),
        ("char", {"schema": '{"const": "~"}'}, r"--json_schema=.* no token for .*~"),
        ("bpe", {"schema": "{}", "regex": "a"}, "--regex and --json_schema.*give one"),
        ("bpe", {}, "--regex and --json_schema.*give one"),
    ],
)
def test_what_cannot_match_is_refused_by_its_flag(kind, options, message):
    vocabulary = tokenizer(kind)
    with pytest.raises(FlagError, match=message) as error:
        Constraint(vocabulary, [vocabulary.role_ids["eos"]], **options)
    assert "\n" not in str(error.value)


def test_a_schema_that_forces_what_cannot_be_spelled_ends_in_one_message():
    """The characters of a format are not in the schema, so a missing one is only noticed during generation."""
    schema = '{"type": "array", "items": {"type": "string", "format": "duration"}, "minItems": 1}'
    letters = schema + "{}[]:,-+.0123456789eEtruefalsn"
    vocabulary = train_tokenizer([letters], TokenizerConfig(kind="char", byte_fallback=False))
    constraint = Constraint(vocabulary, [vocabulary.eos_id], schema=schema)
    state = constraint.start()
    for letter in '["':
        token = vocabulary.encode(letter)[0]
        assert state.allowed()[token]
        state.advance(token)
    with pytest.raises(DataError, match=r"--json_schema=.*array.*the text cannot continue"):
        state.allowed()


def test_a_text_that_begins_with_a_space_is_refused_only_where_no_tokens_spell_it():
    """With SentencePiece's default settings, decoding drops every space before a text, but not after other text."""
    vocabulary = tokenizer("foreign")
    constraint = Constraint(vocabulary, [vocabulary.eos_id], regex="  x")
    assert constraint.start(vocabulary.encode("a")).allowed().any()
    with pytest.raises(FlagError, match="no text matches it"):
        constraint.start()


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(FlagError, match=r"--regex needs .*pip install 'lmjax\[constrain\]'"):
        Constraint(tokenizer("char"), [3], regex="a")


OVERLAP = {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (OVERLAP, "oneOf may allow .*; write anyOf; change"),
        ({"type": "object", "properties": {"first_name": OVERLAP}}, "; write anyOf; change"),
        ({"$defs": {"x": OVERLAP}, "type": "array", "items": {"$ref": "#/$defs/x"}}, "; write anyOf; change"),
        ({"if": {}, "then": {}}, '"if", "then" is not implemented; leave it out'),
        ({"type": "array", "uniqueItems": True}, '"uniqueItems" is not implemented'),
        (
            {"$ref": "https://example.org/x"},
            r"\$ref to 'https://example.org/x': nothing is fetched; put it under \$defs",
        ),
        ({"$ref": "#/definitions/x"}, r"\$ref to '#/definitions/x': there is no such place"),
        ({"type": "string", "format": "nope"}, "Unknown format: nope"),
        ({"minLength": -1, "type": "string"}, "Expected positive integer for 'minLength', got -1"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types"),
        ({"x-guidance": {"coerce_one_of": True}, **OVERLAP}, "x-guidance is not a keyword of JSON schema; leave"),
        ({"x-guidance": 3}, "x-guidance is not a keyword"),
    ],
)
def test_a_schema_is_refused_in_words_of_json_schema(schema, said):
    """The library's messages mention its own options, which no flag of lmjax sets."""
    vocabulary = tokenizer("bpe")
    with pytest.raises(FlagError, match=f"--json_schema=.*{said}") as error:
        Constraint(vocabulary, [vocabulary.role_ids["eos"]], schema=json.dumps(schema))
    text = str(error.value).partition("...: ")[2] or str(error.value)
    assert not any(word in text for word in ("option", "Enable", "compile JSON schema", "struct ", "::"))


def test_one_of_that_cannot_overlap_is_any_of():
    vocabulary = tokenizer("bpe")
    schemas = [{name: [{"type": "null"}, {"type": "boolean"}]} for name in ("oneOf", "anyOf")]
    one, other = (Constraint(vocabulary, [1], schema=json.dumps(s)).start().allowed() for s in schemas)
    np.testing.assert_array_equal(one, other)
