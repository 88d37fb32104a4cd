"""What limits the results of a sweep, as sentences of its report; each function returns none or one."""

from __future__ import annotations

from lmjax.schema import shown
from lmjax.sweep.arms import is_seed, task_fields
from lmjax.sweep.statistics import Analysis
from lmjax.training.evaluate import FALLING


def shared_seeds(found: Analysis) -> list[str]:
    """Returns a warning if the runs of arms differ in some of their seeds alone, so that they are not independent."""
    seeds = dict.fromkeys(name for arm in found.arms for run in arm.runs for name in run.fields if is_seed(name))
    varied = [
        field
        for field in seeds
        if any(len({shown(run.fields.get(field)) for run in arm.runs}) > 1 for arm in found.arms)
    ]
    if not varied or "seed" in varied:
        return []
    return [
        f"The runs of an arm differ in {' and '.join(varied)} alone, and share what is random otherwise: intervals of "
        "means and differences are narrower than those of independent runs, which seed=0:3 gives."
    ]


def other_tasks(found: Analysis) -> list[str]:
    """Returns a warning if arms differ in what is predicted from what, and are compared by a loss of it."""
    varied = [name for name in task_fields(found.arms) if found.metric.rpartition("/")[2] in FALLING]
    if not varied:
        return []
    return [
        f"Arms differ in {' and '.join(varied)}, so in what is predicted from what: a lower loss may mean an easier "
        "task, not a better model. Fine-tune the runs on one task (--grid with init_from) to compare them."
    ]


def unpaired_documents(found: Analysis) -> list[str]:
    """Returns why documents are not paired, if they are not."""
    return [f"Documents are not paired: {found.unpaired}."] if found.unpaired else []


def single_runs(found: Analysis) -> list[str]:
    """Returns a warning if an arm that is compared has one run."""
    compared = {i for pair in found.pairs for i in (pair.first, pair.second)}
    if all(len(found.arms[i].runs) > 1 for i in compared):
        return []
    return ["An arm with a single run says nothing of the noise of its seed: a difference may be that of seeds."]
