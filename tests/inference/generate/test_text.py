"""Text streams: the joined parts equal the decoded text; parts are whole characters, without stop strings."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.inference.generate.text import TextStream
from tests.inference.tokenizers import MAKERS, tokenizer

LOSSLESS = [kind for kind in MAKERS if kind not in ("word_piece", "char", "bpe_without_bytes")]
# Emoji of several characters, combining marks, right-to-left text, and text that tokenizers split differently.
PIECES = (
    "👨‍👩‍👧",
    "🇩🇪",
    "e\u0301",
    "ñ",
    "שלום",
    "快速",
    "import",
    " ",
    "  ",
    "\n",
    "the",
    ".",
    "12",
    '{"a": ',
    "\u0300",
    "z\u0332",
)
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.characters(codec="utf-8")), max_size=60).map("".join)


def parts(kind, ids, context=(), stop=()):
    stream = TextStream(tokenizer(kind), context, stop)
    return [*(stream.push(i) for i in ids), stream.finish()], stream


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS, cut=st.integers(0, 30))
def test_the_parts_joined_are_the_text_behind_the_prompt(kind, text, cut):
    vocabulary = tokenizer(kind)
    ids = [i for i in vocabulary.encode(text) if i not in vocabulary.special_ids]
    cut = min(cut, len(ids))
    prompt = vocabulary.decode(ids[:cut])
    found = "".join(parts(kind, ids[cut:], ids[:cut])[0])
    if "\ufffd" not in prompt and not (cut and prompt.isspace()):
        # A prompt of only white space may decode to nothing: then no text precedes.
        assert prompt + found == vocabulary.decode(ids)
    assert "".join(parts(kind, ids)[0]) == vocabulary.decode(ids), "the text of all ids, without context"


@pytest.mark.parametrize("kind", LOSSLESS)
def test_no_part_breaks_a_character(kind):
    text = "🙂🏳️‍🌈 e\u0301 快速 שלום Ä " * 8
    vocabulary = tokenizer(kind)
    found, _ = parts(kind, vocabulary.encode(text))
    assert not any("\ufffd" in part for part in found)
    assert len([part for part in found if part]) > 20, "the text was returned in too few parts"


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_bytes_that_are_no_characters_never_stop_a_text(kind, data):
    """Arbitrary ids, as from an untrained model: returned text never changes, and all text is returned at the end."""
    vocabulary = tokenizer(kind)
    ids = data.draw(st.lists(st.integers(0, vocabulary.vocab_size + 20), max_size=60))
    known = [i for i in ids if i < vocabulary.vocab_size]
    end = vocabulary.encode("end")
    found = "".join(parts(kind, [*ids, *end])[0])
    assert found.endswith("end")
    spelled = b"".join(vocabulary.pieces[i] for i in known)
    if spelled.decode(errors="ignore").encode() == spelled and not vocabulary.special_ids & set(known):
        assert found == vocabulary.decode([*known, *end])


@pytest.mark.parametrize("kind", ["byte_level", "llama", "bpe"])
@settings(max_examples=40, deadline=None)
@given(text=TEXTS, data=st.data())
def test_a_text_ends_in_front_of_the_first_stop_string_however_it_is_cut(kind, text, data):
    vocabulary = tokenizer(kind)
    stop = data.draw(st.lists(st.text("the \n.e\u0301", min_size=1, max_size=4), min_size=1, max_size=3))
    ids = vocabulary.encode(text)
    whole = vocabulary.decode(ids)
    found, stream = parts(kind, ids, stop=stop)
    ends = [(whole.find(s) + len(s), whole.find(s)) for s in stop if s in whole]
    assert stream.stopped == bool(ends)
    assert "".join(found) == (whole[: min(ends)[1]] if ends else whole)


def test_what_might_begin_a_stop_string_is_held_back_and_then_given_out():
    vocabulary = tokenizer("char")
    stream = TextStream(vocabulary, stop=("\n\nQ:", "\n\nA"))
    given_out = [stream.push(i) for i in vocabulary.encode("x\n\n\n\nB\n\nAy")]
    assert given_out == ["x", "", "", "\n", "\n", "\n\nB", "", "", "", ""]
    assert stream.stopped
    assert stream.finish() == ""
    held = TextStream(vocabulary, stop=("and so",))
    assert [held.push(i) for i in vocabulary.encode("an")] == ["", ""]
    assert held.finish() == "an"
    assert not held.stopped


@pytest.mark.parametrize("kind", ["llama", "foreign"])
def test_a_space_is_dropped_where_a_text_begins_and_nowhere_else(kind):
    vocabulary = tokenizer(kind)
    (token,) = [i for i, piece in enumerate(vocabulary.pieces) if piece == b" the"]
    prompt = vocabulary.encode("of")
    assert "".join(parts(kind, [token, token])[0]) == "the the"
    assert "".join(parts(kind, [token], prompt)[0]) == " the"
    assert "".join(parts(kind, [token], [*prompt, vocabulary.eos_id])[0]) == "the", "after a separator"
    assert "".join(parts(kind, [token] * 100, prompt)[0]) == " the" * 100
    space = [i for i, piece in enumerate(vocabulary.pieces) if piece == b" "][1]  # the first is a byte piece
    spaces = [space] * 40
    assert "".join(parts(kind, [token], [*prompt, *spaces])[0]) == " the", "after a prompt of spaces only"
    assert "".join(parts(kind, [*spaces, token], prompt)[0]) == " " * 40 + " the"


@pytest.mark.parametrize("kind", ["byte_level", "bpe"])
def test_the_cost_is_linear(kind):
    """Ten times the tokens take about ten times as long, not a hundred times."""
    ids = tokenizer(kind).encode("def area(width): return 快速 width * 3.5\n" * 400)[:6000]

    def seconds(count):
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            parts(kind, ids[:count])
            best = min(best, time.process_time() - start)
        return best

    assert seconds(6000) < 30 * seconds(600)
