"""Entities and their F1 are conlleval's: exact spans, in IOB1, BIO and BIOES, of tags that are well formed or not."""

import numpy as np
import pytest

from lmjax.data.tag_schemes import Entity, entities
from lmjax.errors import DataError
from lmjax.evaluation.entities import entity_f1

RNG = np.random.default_rng(0)


def bio(rng, length=12):
    """Tags that are often not well formed."""
    return [f"{rng.choice(['B', 'I'])}-{rng.choice(['x', 'y', 'z'])}" if rng.random() < 0.6 else "O"
            for _ in range(length)]  # fmt: skip


@pytest.mark.parametrize(("tags", "expected"), [
    ("O O", []),
    ("B-x I-x O", [("x", 0, 2)]),
    ("B-x B-x I-x", [("x", 0, 1), ("x", 1, 3)]),
    ("B-x I-y", [("x", 0, 1), ("y", 1, 2)]),
    ("I-x I-x O I-y", [("x", 0, 2), ("y", 3, 4)]),  # IOB1, or BIO that is not well formed
    ("I-x B-x I-x", [("x", 0, 1), ("x", 1, 3)]),
    ("S-x B-x I-x E-x S-y", [("x", 0, 1), ("x", 1, 4), ("y", 4, 5)]),
    ("B-x E-x I-x", [("x", 0, 2), ("x", 2, 3)]),
    ("E-x S-x I-x", [("x", 0, 1), ("x", 1, 2), ("x", 2, 3)]),
    ("B-x S-x", [("x", 0, 1), ("x", 1, 2)]),
    ("B-a-b I-a-b", [("a-b", 0, 2)]),
    ("B I O B", [("", 0, 2), ("", 3, 4)]),
    ("", []),
])  # fmt: skip
def test_entities_of_tags(tags, expected):
    assert entities(tags.split()) == [Entity(*each) for each in expected]


def test_schemes_have_the_same_entities():
    """The same entities, written in BIO, in IOB1 and in BIOES."""
    for _ in range(50):
        found = entities(bio(RNG))
        others = {scheme: ["O"] * 12 for scheme in ("BIO", "IOB1", "BIOES")}
        for i, (kind, start, end) in enumerate(found):
            for at in range(start, end):
                others["BIO"][at] = f"{'B' if at == start else 'I'}-{kind}"
                close = i > 0 and found[i - 1].end == start and found[i - 1].type == kind
                others["IOB1"][at] = f"{'B' if at == start and close else 'I'}-{kind}"
                part = "S" if end - start == 1 else "B" if at == start else "E" if at == end - 1 else "I"
                others["BIOES"][at] = f"{part}-{kind}"
        for scheme, tags in others.items():
            assert entities(tags) == found, scheme


def test_f1_by_hand():
    gold = [["B-x", "I-x", "O", "B-y"], ["O", "O"]]
    predicted = [["B-x", "O", "O", "B-y"], ["B-y", "O"]]
    found = entity_f1(gold, predicted).values
    # Of x nothing is right; of y one of two is, and all of the gold data.
    expected = {"precision micro": 1 / 3, "recall micro": 1 / 2, "f1 micro": 2 / 5, "f1 x": 0, "precision y": 1 / 2,
                "recall y": 1.0, "f1 y": 2 / 3, "f1 macro": 1 / 3}  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_f1_is_that_of_nervaluate():
    evaluator = pytest.importorskip("nervaluate").Evaluator
    gold = [bio(RNG) for _ in range(40)]
    predicted = [tags if RNG.random() < 0.5 else bio(RNG) for tags in gold]
    found = entity_f1(gold, predicted)
    results = evaluator(gold, predicted, tags=["x", "y", "z"], loader="list").evaluate()
    for name, strict in (("micro", results["overall"]["strict"]),
                         *((kind, of["strict"]) for kind, of in results["entities"].items())):  # fmt: skip
        for kind in ("precision", "recall", "f1"):
            assert found.values[f"{kind} {name}"] == pytest.approx(getattr(strict, kind)), (kind, name)
    picked = RNG.integers(40, size=40)
    counts = np.bincount(found.kinds[picked], minlength=found.kinds.max() + 1)[None].astype(float)
    again = entity_f1([gold[i] for i in picked], [predicted[i] for i in picked]).values
    assert {name: x[0] for name, x in found.of_counts(counts).items()} == pytest.approx(dict(again))


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(DataError, match="tag 1 is 'X-x'; tags are O, or B, I, E or S"):
        entities(["O", "X-x"])
    with pytest.raises(DataError, match="tag 0 is 'O-x'"):
        entities(["O-x"])
    with pytest.raises(DataError, match="tag 0 is ''"):
        entities([""])
    with pytest.raises(DataError, match="0 examples"):
        entity_f1([], [])
    with pytest.raises(DataError, match="sentence 1: 1 gold and 2 predicted tags"):
        entity_f1([["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(DataError, match="no entity in 1 sentences"):
        entity_f1([["O"]], [["O"]])
    nothing = entity_f1([["B-x"], ["O"]], [["O"], ["O"]]).measured(10)
    assert (nothing["f1 micro"], nothing["f1 micro"].high) == (0, 0)
