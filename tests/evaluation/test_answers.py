"""Exact match and F1 of answers are those of the evaluation scripts of SQuAD 1.1 and 2.0.

They were also compared with `squad_metrics` of transformers 4.57, on 20,000 random pairs of texts: all were equal. The
transformers of today has this module no longer.
"""

import numpy as np
import pytest

from lmjax.errors import DataError
from lmjax.evaluation.answers import answer_f1, normalised, squad


@pytest.mark.parametrize(("answer", "expected"), [
    ("The Broncos", "broncos"),
    ("  a  U.S. state,\tan island ", "us state island"),
    ("theatre anthem Ana", "theatre anthem ana"),
    ("the", ""),
    ("…“quoted”", "…“quoted”"),  # only ASCII punctuation is dropped
    ("well-known", "wellknown"),
    ("A.D. 70", "ad 70"),
    ("a-the", "athe"),  # punctuation goes first
    ("ÄRZTE", "ärzte"),
])  # fmt: skip
def test_normalised_answers(answer, expected):
    assert normalised(answer) == expected


@pytest.mark.parametrize(("gold", "predicted", "expected"), [
    ("Denver Broncos", "the Denver Broncos", 1.0),
    ("Denver Broncos", "Broncos", 2 / 3),
    ("a b c", "b b c", 2 * 2 / 5),  # "a" is an article; one of the two b is shared
    ("x", "y", 0.0),
    ("the", "", 1.0),
    ("x", "", 0.0),
])  # fmt: skip
def test_f1_of_words(gold, predicted, expected):
    assert answer_f1(gold, predicted) == pytest.approx(expected)


def test_the_best_gold_answer_counts():
    found = squad([["Denver Broncos", "Broncos"], ["1989", "in 1989"]], ["the Broncos!", "year 1989"]).values
    assert found == {"exact_match": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2)}


def test_questions_without_answers():
    """Right only if nothing is predicted; an answer of articles is none."""
    gold, predicted = [["x y"], [], ["the"], [""], ["z"]], ["x", "", "", "w", ""]
    found = squad(gold, predicted)
    expected = {"exact_match": 2 / 5, "f1": (2 / 3 + 2) / 5, "exact_match answer": 0, "f1 answer": 1 / 3,
                "exact_match no answer": 2 / 3, "f1 no answer": 2 / 3}  # fmt: skip
    assert found.values == pytest.approx(expected)
    assert set(squad([[], []], ["", "x"]).values) == {"exact_match", "f1", "exact_match no answer", "f1 no answer"}
    counts = np.bincount(found.kinds[[0, 0, 3]], minlength=found.kinds.max() + 1)[None].astype(float)
    again = squad([gold[i] for i in (0, 0, 3)], [predicted[i] for i in (0, 0, 3)]).values
    assert {name: x[0] for name, x in found.of_counts(counts).items()} == pytest.approx(dict(again))
    measured = found.measured()
    assert measured["f1"].low < measured["f1"] < measured["f1"].high


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(DataError, match="0 examples"):
        squad([], [])
    with pytest.raises(DataError, match="1 and 2 examples"):
        squad([["x"]], ["x", "y"])
