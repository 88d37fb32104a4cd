"""The report at the start of a run: how full its rows are, and the warning if they are not full."""

import numpy as np
import pytest

from lmjax.commands.report import fill_report
from lmjax.data.pipeline import batches
from lmjax.runs.build import build


@pytest.mark.parametrize(
    "objective", ["next_token", "mlm", "mlm,sop", "rtd", "span_corruption", "infilling", "denoise"]
)
def test_the_fill_of_rows_is_counted_over_what_is_trained_on(tiny, tmp_path, objective):
    """The fill is the share of tokens among all positions of both sides in the first batches, for every objective."""
    run = build(tiny(objective), tmp_path)
    (stage,) = run.stages
    total, places = 0, 0
    with batches(stage.examples, stage.examples.mixture, seed=stage.seed, batch_size=8, num_steps=8) as found:
        for batch in found:
            for name, array in batch.items():
                if name.endswith("segment_ids"):
                    total, places = total + np.count_nonzero(array), places + array.size
    assert stage.fill()[""] == pytest.approx(total / places)
    said, warning = fill_report(run.stages)
    assert said.startswith(f"{total / places:.0%}")
    assert bool(warning) == (total / places < 0.7)


def test_a_decoders_row_that_is_too_short_is_warned_of(tiny, tmp_path):
    """With too short rows of targets the encoder's rows are mostly padding; the objective's own length fills both."""
    wrong = build(tiny("span_corruption", model__architecture="encoder_decoder", task__target_length=8,
                       task__length=64), tmp_path / "a")  # fmt: skip
    said, warning = fill_report(wrong.stages)
    assert "encoder" in said
    assert warning.endswith("change --config.task.length (now 64) or --config.task.target_length (now 8)")
    right = build(tiny("span_corruption", task__target_length="none", task__length=64), tmp_path / "b")
    assert fill_report(right.stages)[1] == ""
    assert right.task.objectives[0].target_length == 14
