"""The work of the host for a run's data, in calls of functions, which are the same on a busy and a quiet machine."""

import sys

import pytest

from lmjax.data.pipeline import example_stream
from lmjax.runs.build import build

# By objective: calls for the tokens of the corpus and their packing, and calls for one epoch of its rows.
CALLS = {"next_token": (33_500, 25_500), "mlm": (33_500, 39_500), "span_corruption": (34_200, 50_900)}


def calls(function):
    """Returns what `function` returns, and how many functions it calls in this thread."""
    count = 0

    def add(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(add)
    try:
        result = function()
    finally:
        sys.setprofile(None)
    return result, count


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the numbers are those of Python 3.11")
@pytest.mark.parametrize("objective", CALLS)
def test_the_data_of_a_run_takes_no_more_calls(tiny, tmp_path, monkeypatch, objective):
    """More than a tenth more is slower; where fewer are enough, the new numbers are recorded."""
    build(tiny(objective), tmp_path / "imports")
    monkeypatch.setenv("LMJAX_CACHE", str(tmp_path / "cache"))
    run, preparing = calls(lambda: build(tiny(objective), tmp_path / "run"))
    examples = run.train_examples
    rows = range(len(examples))
    _, reading = calls(lambda: [examples(row, example_stream(0, 0, row)) for row in rows])
    assert preparing <= 1.1 * CALLS[objective][0]
    assert reading <= 1.1 * CALLS[objective][1]
