"""Metrics that objectives have under names of their own: compared by one name, by documents that measure them too."""

import dataclasses

from lmjax.sweep.arms import arms_of, with_shared
from lmjax.sweep.statistics import analyse
from tests.sweep.test_report import arm, run


def accurate(name, **metrics):
    """A run with metrics besides its loss."""
    one = run(name, objective=name[:3])
    return dataclasses.replace(one, metrics=one.metrics | metrics)


def test_accuracies_of_objectives_are_compared_by_one_name():
    given = [
        *(accurate(f"cls{i}", **{"eval/heldout/classification/accuracy": 0.7 + i / 100}) for i in range(2)),
        *(accurate(f"ttt{i}", **{"eval/heldout/text_to_text/accuracy": 0.6 + i / 100}) for i in range(2)),
    ]
    found = analyse(arms_of(with_shared(r) for r in given), "heldout/accuracy")
    assert [arm.values("eval/heldout/accuracy") for arm in found.arms] == [[0.7, 0.71], [0.6, 0.61]]
    alone = analyse(arms_of(with_shared(r) for r in given[:2]), None)
    assert "eval/heldout/classification/accuracy" in alone.table
    assert "eval/heldout/accuracy" not in alone.table, "it stands there by its own name"


def test_documents_that_measure_something_else_than_the_metric_are_not_compared():
    """The documents of these runs have half of their targets right, and the runs say another accuracy."""
    given = [*arm(0.1, 0.0), *arm(0.2, 0.0)]
    same, other = (
        [dataclasses.replace(r, metrics=r.metrics | {"eval/heldout/next_token/accuracy": value}) for r in given]
        for value in (0.5, 0.7)
    )
    paired = analyse(arms_of(with_shared(r) for r in same), "heldout/accuracy")
    assert (paired.documents, paired.unpaired) == (80, "")
    apart = analyse(arms_of(with_shared(r) for r in other), "heldout/accuracy")
    assert apart.documents == 0
    assert "their accuracy in learning_rate=0.1 is 0.5, and eval/heldout/accuracy is 0.7" in apart.unpaired
    assert all(pair.value == 0 for pair in apart.pairs)


def test_accuracies_of_several_objectives_of_a_run_are_not_one():
    names = {"eval/heldout/mlm/accuracy": 0.5, "eval/heldout/nsp/accuracy": 0.9}
    assert "eval/heldout/accuracy" not in with_shared(accurate("mlm", **names)).metrics
