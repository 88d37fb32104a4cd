"""Early stopping counts evaluations without an improvement, also after it is rebuilt from recorded losses."""

import math

from lmjax.training.evaluate import EvaluationConfig
from lmjax.training.stopping import EarlyStopping

LOSSES = (3.0, 2.0, 2.1, 1.9, 1.95, math.nan, 1.9)


def reached_at(patience: int, min_delta: float = 0.0) -> int | None:
    stopping = EarlyStopping(EvaluationConfig(patience=patience, min_delta=min_delta))
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
    rebuilt = EarlyStopping(config, LOSSES[:5])
    assert not rebuilt.reached
    rebuilt.add(LOSSES[5])
    assert rebuilt.reached
    assert "has not fallen below 1.9000" in str(rebuilt)
