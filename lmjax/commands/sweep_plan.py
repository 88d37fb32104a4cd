"""The plan of a sweep: its runs and its groups, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from lmjax.config import Config
from lmjax.sweep.launch import groups
from lmjax.sweep.targets import Target


def plan(targets: Sequence[Target], program: Callable[[Config], Hashable]) -> str:
    """Returns the plan as text."""
    found = groups(targets, program)
    lines = [f"{len(targets)} runs in {len(found)} groups that share a program"]
    lines += [f"  {target.name}" for target in targets]
    return "\n".join(lines)
