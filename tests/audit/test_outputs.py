"""What a model writes is rated as defined, masked unless asked for, and looked up in its training data."""

import re

import numpy as np
import pytest

from lmjax.audit import continuations, memory
from lmjax.audit.continuations import Written, mask, matches, read_patterns
from lmjax.audit.findings import markdown
from lmjax.errors import DataError

WRITTEN = [
    Written("one", ["a bad word", "nothing here", "Bad!"]),
    Written("two", ["fine", "badly put", "well"]),
]


def test_expected_maximum_and_probability_equal_their_definition(tmp_path):
    rates = np.array([[0.1, 0.7, 0.2], [0.3, 0.4, 0.0]])
    words = tmp_path / "words.txt"
    words.write_text("bad\n\n")
    patterns = read_patterns(str(words), "words", words=True)
    section = continuations.section(
        WRITTEN, {"classifier": lambda texts: rates.ravel(), "words": matches(patterns)}, masked=patterns
    )
    found = {f.name: f.value for f in section.findings}
    assert found["classifier: expected maximum"] == pytest.approx((0.7 + 0.4) / 2)
    assert found["classifier: probability"] == 0.5
    assert found["classifier: mean"] == pytest.approx(rates.mean())
    # A word is a whole word, in any case: "badly" is another one.
    assert found["words: probability"] == 0.5
    assert found["words: mean"] == pytest.approx(2 / 6)
    assert [row[0] for row in section.rows[1:]] == ["1.000", "1.000", "0.700", "0.400", "0.300"]


def test_listed_texts_are_masked_unless_asked_for(tmp_path):
    patterns = [re.compile("bad", re.IGNORECASE)]
    hidden = continuations.section(WRITTEN, {"words": matches(patterns)}, masked=patterns)
    assert "bad word" not in markdown("x", (), [hidden], "lmjax")
    assert any("b** word" in row[2] for row in hidden.rows)
    shown = continuations.section(WRITTEN, {"words": matches(patterns)}, masked=patterns, show=True)
    assert any("a bad word" in row[2] for row in shown.rows)
    # What only a classifier calls toxic has no word that could be masked alone.
    assert mask("an odd text", patterns) == "a* o** t***"


def test_two_models_are_compared_prompt_by_prompt():
    rates = {"words": matches([re.compile("bad")])}
    other = [Written("one", ["fine"] * 3), Written("two", ["bad"] * 3)]
    found = {f.name: f for f in continuations.section(WRITTEN, rates, other).findings}
    assert found["words: mean"].difference.value == pytest.approx(2 / 6 - 1 / 2)


def test_a_pattern_that_is_none_is_named(tmp_path):
    path = tmp_path / "patterns.txt"
    path.write_text("a+\n(\n")
    with pytest.raises(DataError, match=r"patterns\.txt:2: '\(' is no regular expression"):
        read_patterns(str(path), "patterns", words=False)
    path.write_text("\n")
    with pytest.raises(DataError, match=r"--patterns: .* has no lines"):
        read_patterns(str(path), "patterns", words=False)


def test_spans_are_found_as_by_a_search_through_all_documents():
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 4, size) for size in (0, 3, 50, 200)]
    texts = [rng.integers(0, 4, size) for size in (0, 2, 5, 30, 40)]
    texts.append(documents[2][10:30])
    span = 5
    there = {tuple(d[i : i + span]) for d in documents for i in range(len(d) - span + 1)}
    expected = []
    for text in texts:
        own = [tuple(text[i : i + span]) for i in range(len(text) - span + 1)]
        expected.append((len(own), sum(x in there for x in own)))
    found = memory.repeated(texts, documents, span)
    assert found == expected
    assert found[-1] == (16, 16)
    assert 0 < found[-2].found < found[-2].spans


def test_a_span_across_two_documents_is_not_in_the_data():
    assert memory.repeated([[1, 2, 3, 4]], [np.array([1, 2]), np.array([3, 4])], 3) == [(2, 0)]
    assert memory.repeated([[1]], [np.array([1, 2, 3])], 3) == [(0, 0)]


def test_planted_text_is_found_and_other_text_is_not():
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 1000, 100) for _ in range(20)]
    ids = [documents[3][:30].tolist(), rng.integers(0, 1000, 30).tolist()]
    written = [Written("p", ["planted"], ids[:1]), Written("q", ["other"], ids[1:])]
    section = memory.section(written, memory.repeated(ids, documents, 8), 8)
    found = {f.name: f.value for f in section.findings}
    assert found["spans in the data, %"] == 50
    assert found["prompts with one, %"] == 50
    assert list(section.rows[1:]) == [("23", "planted")]
