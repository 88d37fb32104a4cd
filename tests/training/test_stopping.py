"""Early stopping counts evaluations without an improvement, also after it is rebuilt from recorded losses."""

import math

import pytest

from lmjax.errors import FlagError
from lmjax.training.evaluate import EvaluationConfig, Followed
from lmjax.training.stopping import EarlyStopping

LOSS = Followed("eval/heldout/loss")
LOSSES = (3.0, 2.0, 2.1, 1.9, 1.95, math.nan, 1.9)


def reached_at(patience: int, min_delta: float = 0.0) -> int | None:
    stopping = EarlyStopping(EvaluationConfig(patience=patience, min_delta=min_delta), LOSS)
    for number, loss in enumerate(LOSSES):
        stopping.add(loss)
        if stopping.reached:
            return number
    return None


def test_it_stops_after_patience_evaluations_that_were_not_better():
    assert reached_at(1) == 2
    assert reached_at(2) == 5  # a NaN is no improvement
    assert reached_at(3) == 6  # nor is the best loss again
    assert reached_at(4) is None


def test_an_improvement_must_be_larger_than_min_delta():
    assert reached_at(2, min_delta=0.2) == 3


def test_no_patience_means_never():
    assert reached_at(0) is None


def test_rebuilt_from_its_losses_it_stands_where_it_stood():
    config = EvaluationConfig(patience=2)
    rebuilt = EarlyStopping(config, LOSS, LOSSES[:5])
    assert not rebuilt.reached
    rebuilt.add(LOSSES[5])
    assert rebuilt.reached
    assert "has not fallen below 1.9000" in str(rebuilt)


def test_a_metric_that_should_rise_is_followed_upwards():
    followed = Followed("eval/dev/accuracy", falling=False)
    stopping = EarlyStopping(EvaluationConfig(patience=1), followed)
    for accuracy in (0.5, 0.7, 0.6):
        assert not stopping.reached
        stopping.add(followed.cost(accuracy))
    assert stopping.reached
    assert "eval/dev/accuracy has not risen above 0.7000" in str(stopping)


def test_a_metric_that_no_evaluation_has_is_refused_with_those_that_it_has():
    with pytest.raises(
        FlagError, match=r"evaluation.metric: the evaluation has no 'dev/acuracy'; did you mean dev/accuracy"
    ):
        Followed("eval/dev/acuracy").read({"eval/dev/accuracy": 1.0})
