"""`lmjax doctor`: reports what is wrong with a workdir and what can still be used, and repairs it if asked to."""

from __future__ import annotations

from absl import flags

from lmjax.errors import CheckpointError, FlagError
from lmjax.runs.doctor import Finding, examine, repair
from lmjax.runs.places import local_folder


def main(values: flags.FlagValues) -> list[Finding]:
    """Returns the findings if all are sound; prints them, and raises CheckpointError if one is not."""
    if not values["workdir"].value:
        raise FlagError("--workdir: name the run to verify")
    workdir = local_folder(values["workdir"].value)
    if values["repair"].value:
        for line in repair(workdir):
            print(f"repair: {line}")
    findings = examine(workdir)
    for finding in findings:
        print(f"{'ok   ' if finding.sound else 'WRONG'} {finding.text}")
    if wrong := [finding for finding in findings if not finding.sound]:
        remedy = (
            "" if values["repair"].value else "; --repair removes unfinished saves and moves damaged checkpoints aside"
        )
        raise CheckpointError(f"--workdir={workdir}: {len(wrong)} thing(s) are wrong{remedy}")
    return findings
