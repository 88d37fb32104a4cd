"""The plan of a sweep: its groups and its runs, and what they will spend, before anything is trained."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.commands.fits import check_run, needs
from lmjax.commands.table import aligned
from lmjax.config import Config
from lmjax.errors import FlagError, UserError
from lmjax.parallel.peak import product_flops
from lmjax.sweep.cost import Cost, Costs, Unit
from lmjax.sweep.launch import groups
from lmjax.sweep.origins import origin_fields
from lmjax.sweep.progress import duration
from lmjax.sweep.statistics import design
from lmjax.sweep.targets import Target

# The most runs of a group that are listed; rows of the product that is timed, and how often.
_LISTED, _ROWS, _TIMES = 30, 4096, 5


def counted(targets: Sequence[Target], costs: Costs) -> dict[str, Cost]:
    """Returns what each run spends, by name; raises UserError, naming the run, if its data or its sizes do not fit."""
    found = {}
    for target in targets:
        try:
            found[target.name] = costs(target.config)
        except UserError as e:
            raise type(e)(f"the run {target.name}: {e}") from e
    return found


def check_metric(metric: str | None, costs: Mapping[str, Cost]) -> None:
    """Raises FlagError, naming a run, if it is not evaluated on the set that the metric names."""
    evaluated = (metric or "").removeprefix("eval/").split("/")[0]
    for name, cost in costs.items():
        if metric and evaluated not in cost.sets:
            sets = ", ".join(cost.sets) or "no set"
            raise FlagError(
                f"--metric={metric}: the run {name} is evaluated on {sets}; write SET/MEASURE, such as "
                f"{(*cost.sets, 'heldout')[0]}/loss"
            )


def check(targets: Sequence[Target], program: Callable[[Config], Hashable | None]) -> None:
    """Raises FlagError, naming the run, if a run cannot fit on this machine; of each group one run is checked."""
    for first, *_ in groups(targets, program).values():
        try:
            check_run(first.config)
        except FlagError as e:
            raise FlagError(f"the run {first.name}: {e}") from e


def plan(
    targets: Sequence[Target],
    program: Callable[[Config], Hashable | None],
    costs: Mapping[str, Cost],
    results: Mapping[str, Mapping[str, Any]],
) -> str:
    """Returns the plan as text.

    Args:
        targets: the runs.
        program: equal for configs that are trained together.
        costs: what each run spends, by name.
        results: of the runs that have ended, by name.
    """
    found = groups(targets, program)
    rows = [("group", "runs", "parameters", "steps of each", "tokens", "FLOPs", "memory")]
    for name, members in found.items():
        first, cost = members[0].config, costs[members[0].name]
        spent = [f"{cost.steps:,}", *(_sum(members, costs, unit) for unit in ("tokens", "flops"))]
        if first.minutes is not None:
            spent = [f"{first.minutes:g} min", "", ""]
        size = len(members) * sum(needs(first).values()) / 2**20
        rows.append((name, str(len(members)), f"{cost.parameters / 1e6:.2f} M", *spent, f"{size:,.0f} MiB"))
    what = f"{len(targets)} run{'s' * (len(targets) > 1)} in {len(found)} group{'s' * (len(found) > 1)}"
    lines = [f"{what}; the runs of a group share a program", "", *aligned(rows)]
    lines += [
        "Tokens and model FLOPs are those of all runs of a group, and so is memory, of which this is the least.",
        "",
    ]
    lines += ["group  run"]
    for name, members in found.items():
        lines += [f"{name:<5}  {member.name}" for member in members[:_LISTED]]
        lines += [f"{name:<5}  ... and {len(members) - _LISTED} more"] * (len(members) > _LISTED)
    told = design(origin_fields([target.fields for target in targets]))
    return "\n".join([*lines, "", *_time(targets, costs, results), *([told] if told else [])])


def _sum(members: Sequence[Target], costs: Mapping[str, Cost], unit: Unit) -> str:
    return f"{sum(costs[member.name].total(unit) for member in members):.3g}"


def _time(targets: Sequence[Target], costs: Mapping[str, Cost], results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns how long the runs that have not ended will take, and what the estimate rests on."""
    ended = [target for target in targets if target.name in results and results[target.name]["status"] != "crashed"]
    left = [target for target in targets if target not in ended]
    lines = [f"{len(ended)} of them have ended"] if ended else []
    if not left:
        return lines
    minutes = sum(target.config.minutes or 0 for target in left)
    flops = sum(costs[target.name].total("flops") for target in left if target.config.minutes is None)
    clock = [f"{duration(60 * minutes)} by the clock"] if minutes else []
    speeds = [r["flops"] / r["seconds"] for r in (results[target.name] for target in ended) if r["seconds"]]
    if flops and speeds:
        speed = statistics.median(speeds)
        clock.append(
            f"{duration(flops / speed)} for {flops:.3g} FLOPs at {speed / 1e9:,.0f} GFLOP/s, as measured in the runs "
            "that have ended, without compilation and evaluation"
        )
    elif flops:
        speed = product_speed(max((target.config for target in left), key=lambda config: config.model.embed_dim))
        clock.append(
            f"at least {duration(flops / speed)} for {flops:.3g} FLOPs: an estimate by the speed of one of the model's "
            f"matrix products alone, measured here at {speed / 1e9:,.0f} GFLOP/s"
        )
    return [*lines, f"time, one run after the other: {' and '.join(clock)}"]


def product_speed(config: Config) -> float:
    """Returns the FLOP/s of a product of activations with an MLP's kernel, measured on all devices of this process."""
    rows, model = min(_ROWS, config.batch_size * config.task.length), config.model
    dtype = jnp.bfloat16 if model.dtype == "bfloat16" else jnp.float32
    left, right = jnp.ones((rows, model.embed_dim), dtype), jnp.ones((model.embed_dim, model.mlp_dim), dtype)
    devices = 1 if jax.default_backend() == "cpu" else jax.local_device_count()
    return product_flops(left, right, _TIMES) * devices
