"""Words with tags: the columns of CoNLL files, the schemes of tags, and the tokens of the words of a sentence."""

import json

import numpy as np
import pytest

from lmjax.data.columns import Column, read_columns
from lmjax.data.documents import Document, spaced, unspaced
from lmjax.data.encoding import encode_records
from lmjax.data.files import Faults
from lmjax.data.tag_schemes import entities, fault, mark_entities, tags_of
from lmjax.data.tagged_words import TaggedWords
from lmjax.errors import DataError

COLUMNS = (Column("words", "words"), Column("tags", "strings", classes=()))
CONLL = "-DOCSTART- -X- O\n\n# id 7 of the file\nThe DT O\nfox NN B-animal\n\n\n# DT O\n \t\nA DT O\n"


def read(path, faults=None, scheme="none", repair=False, columns=COLUMNS, **fields):
    form = TaggedWords(scheme, repair, **fields)
    found = read_columns(path, faults or Faults("error"), columns, record_format=form)
    return [(unspaced(d.segments), *d.values) for d in found]


def test_a_conll_file_holds_the_same_as_json(write):
    """Comments and document marks are left out; a word "#" is none."""
    expected = [(["The", "fox"], ("O", "B-animal")), (["#"], ("O",)), (["A"], ("O",))]
    assert read(write("a.conll", CONLL)) == expected
    tabs = CONLL.replace("# id 7 of the file", "# id\t7").replace(" ", "\t").replace("#\tid", "# id")
    assert read(write("a.txt.gz", tabs)) == expected
    assert read(write("crlf.conll", CONLL.replace("\n", "\r\n"))) == expected
    lines = "".join(json.dumps({"words": w, "tags": t}) + "\n" for w, t in expected)
    assert read(write("a.jsonl", lines)) == expected
    table = "words\ttags\nThe fox\tO B-animal\n#\tO\nA\tO\n"
    assert read(write("a.tsv", table)) == expected


def test_words_of_a_tabbed_file_may_hold_spaces_and_a_no_break_space(write):
    assert read(write("a.conll", "New York\tB\n\u00a0\tO\n")) == [(["New York", "\u00a0"], ("B", "O"))]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a O\nb\n", "a.conll:2: 1 columns, and the lines before have 2; correct it"),
        (b"a O\n\nb O\nc \xff\n", "a.conll:4: not UTF-8"),
        (b"a\nb\n", "a.conll:1: no 'tags' among the fields words; a record needs words and tags"),
        (b"a O\n\n# c d e\nb O\nc I-x\n", r"a.conll:4: word 2 \('c'\): the tag 'I-x' stands after 'O', and no entity"),
        (b"a I-x\n", r"a.conll:1: word 1 \('a'\): the tag 'I-x' is the first tag, and no entity is open"),
        (b"a S-x\n", r"a.conll:1: word 1 .* 'S-x' is no tag of bio: they are O and B-TYPE, I-TYPE"),
    ],
)
def test_a_bad_line_is_told_or_left_out_with_its_sentence(write, content, said):
    path = write("a.conll", content)
    with pytest.raises(DataError, match=said):
        read(path, scheme="bio")
    sound = write("b.conll", b"x O\n\n" + content + b"\ny O\n")
    faults = Faults("skip")
    found = read(sound, faults, scheme="bio")
    assert found[0] == (["x"], ("O",))
    assert faults.first


def test_without_gold_nothing_is_checked(write):
    columns = (COLUMNS[0], COLUMNS[1]._replace(optional=True, classes=None))
    assert read(write("a.conll", "a\nb\n\nc\n"), scheme="bio", columns=columns, gold=False) == [
        (["a", "b"], ()), (["c"], ())]  # fmt: skip
    assert read(write("b.conll", "a I-x\n"), scheme="bio", columns=columns, gold=False) == [(["a"], ("I-x",))]


@pytest.mark.parametrize(
    ("tags", "bio", "bioes"),
    [
        ("O B-x I-x O", None, 2),
        ("B-x B-x", None, 0),
        ("B-x I-y", 1, 1),
        ("I-x", 0, 0),
        ("B I O B", None, 1),
        ("S-x B-y I-y E-y", 0, None),
        ("B-x", None, 0),
        ("E-x", 0, 0),
        ("S-x E-x", 0, 1),
        ("B-x O", None, 0),
        ("o", 0, 0),
        ("B-x E-x I-x", 1, 2),
    ],
)
def test_a_wrong_tag_is_found_and_repaired(tags, bio, bioes):
    tags = tags.split()
    for scheme, expected in (("bio", bio), ("bioes", bioes)):
        found = fault(tags, scheme)
        assert (found[0] if found else None) == expected, found
        if mark_entities([*tags, "B"]):
            repaired = tags_of(entities(tags), len(tags), scheme)
            assert fault(repaired, scheme) is None
            assert entities(repaired) == entities(tags)
            assert expected is not None or list(repaired) == tags
    assert fault(tags, "none") is None


def test_words_have_the_tokens_of_the_sentence(tokenizer, text):
    """Whatever the tokenizer makes of a sentence, its words have these tokens, and no other word has them."""
    words = [*text.split(), "", "a b", " "]
    documents = [Document((*spaced(words), "a text"), "", counts=(len(words), 1), running=(True, False)),
                 Document(("b",), "", counts=(0, 1), running=(True, False))]  # fmt: skip
    first, second = encode_records(documents, tokenizer)
    assert len(first) == len(words) + 1
    assert np.concatenate(first[:-1]).tolist() == tokenizer.encode(" ".join(words))
    assert first[-1].tolist() == tokenizer.encode("a text")
    assert [ids.tolist() for ids in second] == [tokenizer.encode("b")]
    apart = [tokenizer.decode(ids) for ids in first[: len(text.split())]]
    assert apart == list(spaced(text.split())), "a word has not the space before it, or a token of another word"
