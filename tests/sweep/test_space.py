"""Combinators of points, and the text of --grid: what they make, and one clear error for each wrong input."""

import re

import pytest

from lmjax.errors import FlagError
from lmjax.sweep.grid import parse_grid
from lmjax.sweep.space import Space, Sweep, chain, param, product, seeds, subsample, zipped

LR = param("optimizer.learning_rate", [1e-4, 3e-4])


def dicts(space: Space) -> list[dict]:
    return [dict(point) for point in space]


def test_a_product_varies_the_last_space_fastest():
    assert dicts(product(param("a", [1, 2]), param("b", ["xy", "z"]))) == [
        {"a": 1, "b": "xy"}, {"a": 1, "b": "z"}, {"a": 2, "b": "xy"}, {"a": 2, "b": "z"},
    ]  # fmt: skip


def test_zipped_goes_through_its_spaces_together_and_chain_through_one_after_the_other():
    assert dicts(zipped(param("a", [1, 2]), param("b", [3, 4]))) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert dicts(chain(param("a", [1]), product(param("a", [2]), param("b", [3])))) == [{"a": 1}, {"a": 2, "b": 3}]


def test_seeds_vary_the_run_or_one_source_of_noise_alone():
    assert dicts(seeds(2)) == [{"seed": 0}, {"seed": 1}]
    assert dicts(seeds(init=2)) == [{"seeds.init": 0}, {"seeds.init": 1}]
    assert len(seeds(init=2, order=3)) == 6


def test_a_subsample_is_the_same_each_time_keeps_the_order_and_repeats_nothing():
    space = param("a", range(20))
    chosen = [point["a"] for point in subsample(space, 5, seed=1)]
    assert chosen == sorted(set(chosen)) == [point["a"] for point in subsample(space, 5, seed=1)]
    assert len(chosen) == 5
    assert chosen != [point["a"] for point in subsample(space, 5, seed=2)]


def test_a_point_cannot_be_changed():
    with pytest.raises(TypeError):
        LR.points[0]["seed"] = 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: param("a", []), "a: has no values"),
        (lambda: param("a", "xy"), "give a list of values"),
        (lambda: param("", [1]), "give the name of a field"),
        (lambda: param("a", [1, 2, 1]), "a=1: is given twice"),
        (lambda: param("a", [None, "none"]), "a=none: is given twice"),
        (lambda: product(LR, LR), "optimizer.learning_rate: two spaces that are combined set it"),
        (lambda: zipped(param("a", [1, 2]), param("b", [1])), "need the same number of points; a has 2"),
        (lambda: chain(LR, LR), "optimizer.learning_rate=0.0001: is given twice"),
        (lambda: seeds(), "give numbers of seeds from 1 on"),
        (lambda: seeds(init=0), "give numbers of seeds from 1 on"),
        (lambda: subsample(LR, 3), "the space has 2 points; take 1 to 2"),
        (lambda: Sweep([{"seed": 1}]), "the first argument is a Space"),
    ],
)  # fmt: skip
def test_a_space_that_makes_no_sense_is_an_error(make, words):
    with pytest.raises(FlagError, match=re.escape(words)):
        make()


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("seed=0:3", [{"seed": "0"}, {"seed": "1"}, {"seed": "2"}]),
        ("config.optimizer.learning_rate=1e-4,3e-4", [{"optimizer.learning_rate": x} for x in ("1e-4", "3e-4")]),
        ("--seed=1", [{"seed": "1"}]),
        ("objective=mlm|mlm,nsp", [{"objective": "mlm"}, {"objective": "mlm,nsp"}]),
        (" a = 1 , 2 ; b = x ", [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}]),
        ("config=experiments/bert_small.py:big", [{"config": "experiments/bert_small.py:big"}]),
    ],
)
def test_the_text_of_a_grid(text, points):
    assert dicts(parse_grid(text)) == points


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is not FIELD=VALUE"),
        ("seed", "'seed' is not FIELD=VALUE"),
        ("seed=0:2;", "'' is not FIELD=VALUE"),
        ("seed=", "seed=: has an empty value"),
        ("a=1,,2", "a=1,,2: has an empty value"),
        ("seed=3:3", "seed=3:3: holds no integer"),
        ("seed=1,1", "seed=1: is given twice"),
        ("seed=1;config.seed=2", "seed is given twice"),
    ],
)
def test_a_grid_that_cannot_be_read_is_an_error(text, words):
    with pytest.raises(FlagError, match=re.escape(words)):
        parse_grid(text)
