"""Sentence boundaries: real ones are found, none inside wrapped prose, and no character is lost."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.data.sentences import split_sentences

CASES = [
    ("", ()),
    (" \n\n", (" \n\n",)),
    ("One. Two! Three? Four.", ("One.", " Two!", " Three?", " Four.")),
    ('He said: "Go." (He meant it.) "Now?" Yes.', ('He said: "Go."', " (He meant it.)", ' "Now?"', " Yes.")),
    ("See e.g. Chapter 3 by Dr. J. Smith et al. Then stop.", ("See e.g. Chapter 3 by Dr. J. Smith et al. Then stop.",)),
    ("Version 3.11 of foo.bar is out. Über uns.", ("Version 3.11 of foo.bar is out.", " Über uns.")),
    ("a sentence. which goes on", ("a sentence. which goes on",)),
    ("你好。世界！再见", ("你好。", "世界！", "再见")),  # noqa: RUF001
    ("import os\n\n\ndef f():\n    return 1\n", ("import os", "\n\n\ndef f():", "\n    return 1\n")),
    ("Title\n\nBody text.\n  \nMore", ("Title", "\n\nBody text.", "\n  \nMore")),
    (
        "A line of prose that was wrapped where the editor found\nno more room for it. The end.",
        ("A line of prose that was wrapped where the editor found\nno more room for it.", " The end."),
    ),
    (
        "The following values can be given on the command line of it\n- first\n- second",
        ("The following values can be given on the command line of it", "\n- first", "\n- second"),
    ),
]


@pytest.mark.parametrize(("text", "sentences"), CASES)
def test_sentences_are_those_that_a_reader_sees(text, sentences):
    assert split_sentences(text) == sentences


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab AZ.!?。\"')(\n\t\r1é")))
def test_joined_sentences_are_the_text(text):
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert all(sentence.strip() for sentence in sentences) or len(sentences) == 1, "a sentence is only white space"


@pytest.mark.parametrize("unit", [".", ". ", ". (", "\n", " ", "a", '."', ".)", "!?\n", "A. ", "\n \t"])
def test_the_time_is_linear_on_hostile_texts(unit):
    start = time.process_time()
    split_sentences(unit * (400_000 // len(unit)))
    assert time.process_time() - start < 5, "a quadratic search hangs on long lines"
