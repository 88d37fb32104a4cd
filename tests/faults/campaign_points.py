"""Runs killed at chosen points of their code, each compared bit for bit with a run that was not killed."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from tests.faults.campaign_kills import Campaign, killed_in, row

# Functions in whose call a run is killed, by what it does then, and whether a process calls them more than once.
POINTS = {
    "building": ("lmjax.runs.fit:_fit", False),
    "compiling": ("lmjax.runs.fit:_open_stage", False),
    "beginning to save": ("lmjax.training.checkpoint:Checkpoints.save", True),
    "writing a manifest": ("lmjax.training.manifest:write", True),
    "completing a manifest": ("lmjax.training.manifest:merge", True),
    "renaming a checkpoint": ("pathlib:Path.rename", True),
    "removing the files of an old checkpoint": ("shutil:rmtree", True),
    "evaluating": ("lmjax.training.evaluate:Evaluator._evaluate", True),
    "writing metrics": ("lmjax.training.metrics:MetricsWriter.write", True),
    "reporting a step": ("lmjax.training.loop:Loop._report", True),
    "taking a batch": ("lmjax.data.pipeline:Batches.__next__", True),
}


def rows(folder: pathlib.Path, number: int) -> Iterator[str]:
    """Yields the rows of the table of the campaign; each point has `number` kills, in as many runs as that takes."""
    campaign = Campaign(folder)
    for name, (place, often) in POINTS.items():
        done = 0
        while done < number:
            # The first and the second call in turn, so that a run is killed before and after it has saved anything.
            calls = [1 + often * (index % 2) for index in range(number - done)]
            before = campaign.kills
            campaign.run(iter([*((None, killed_in(place, call)) for call in calls), (None, None)]))
            assert campaign.kills > before, f"no run was killed while {name}"
            done += campaign.kills - before
        yield row(f"kill -9 while {name}", campaign.record, campaign.step_seconds)
