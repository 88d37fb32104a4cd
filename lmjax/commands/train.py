"""`lmjax train`: resolves the config from the flags, trains, and prints the last report."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from absl import flags, logging
from jax.experimental import multihost_utils

from lmjax.commands.config_help import explain
from lmjax.commands.fits import check_run, sized_model
from lmjax.commands.flags import PROCESSES, data_fields, eval_sets
from lmjax.commands.naming import run_name
from lmjax.commands.report import fill_report, final_report, opening_report
from lmjax.commands.train_flags import FIELDS
from lmjax.config import Config, resolve
from lmjax.errors import FlagError
from lmjax.model.language_model import init_params
from lmjax.model.parameters import parameter_table
from lmjax.parallel import distributed
from lmjax.parallel.compilation_cache import cache_compilations
from lmjax.parallel.malloc import keep_freed_memory
from lmjax.phases import phase, tell
from lmjax.runs.build import Run, build
from lmjax.runs.fit import fit
from lmjax.runs.identity import environment
from lmjax.runs.start import ENDS, is_fresh, start_from
from lmjax.runs.workdir import claim_workdir
from lmjax.streams import prng_key
from lmjax.strict_json import write_json
from lmjax.training.groups import check_groups
from lmjax.training.state import TrainState


class Resolved(NamedTuple):
    """What the flags describe.

    Attributes:
        config: the config.
        name: the name of its run.
        recipe: the paths of the fields that follow the objective's recipe for pretrained parameters unless given.
    """

    config: Config
    name: str
    recipe: tuple[str, ...] = ()


def resolve_flags(values: flags.FlagValues, overrides: Mapping[str, str]) -> Resolved:
    """Returns the config that the flags describe, and the name of its run."""
    fields: dict[str, Any] = {path: values[name].value for name, path in FIELDS.items()}
    fields = {path: value for path, value in fields.items() if value is not None}
    fields |= data_fields(values["data"].value)
    if len(ends := [name for name in ENDS if name in fields]) > 1:
        both = " and ".join(f"--{name}={fields[name]}" for name in ends)
        raise FlagError(f"{both}: give one; either ends the run")
    if ends and ends != ["epochs"]:
        fields["epochs"] = None
    elif ends:
        fields["minutes"] = None
    if values["eval_data"].value:
        fields["data.eval"] = eval_sets(values["eval_data"].value)
    objective, start = values["objective"].value, None
    accepted = values["accept_fields"].value
    if accepted and not values["init_from"].value:
        raise FlagError(f"--accept_fields={accepted[0]}: is for --init_from; give that too")
    if values["init_from"].value:
        if values["preset"].value:
            raise FlagError(f"--preset={values['preset'].value}: --init_from brings its own model; give one of them")
        start = start_from(
            values["init_from"].value,
            accept_fields=accepted,
            experiment=values["config"].value,
            objective=objective,
            architecture=values["architecture"].value,
            given={*fields, *overrides},
            fresh=is_fresh(overrides),
        )
        objective = start.objective
    choices = {
        "experiment": values["config"].value,
        "objective": objective,
        "architecture": values["architecture"].value,
        "preset": values["preset"].value,
        "model": start and start.model,
    }
    origin = start.fields if start else {}
    config = resolve(**choices, overrides=overrides, fields={**origin, **fields})
    try:
        plain = resolve(**choices, fields=origin)
    except FlagError:
        # The choices alone are not a valid config without the other flags.
        plain = config
    beginning = [
        *([pathlib.Path(values["config"].value).name.replace(".py", "")] if values["config"].value else []),
        *(["-".join(config.task.objective)] if objective or not values["config"].value else []),
        *filter(None, (values["architecture"].value, values["preset"].value)),
        *([f"from_{pathlib.Path(values['init_from'].value).name}"] if start else []),
    ]
    name = run_name(beginning, plain, config)
    return Resolved(start.completed(config), name, start.recipe) if start else Resolved(config, name)


def main(values: flags.FlagValues, overrides: Mapping[str, str]) -> pathlib.Path | None:
    """Returns the workdir after training the run that the flags describe; None if only its config was printed."""
    config, name, recipe = resolve_flags(values, overrides)
    if values["help_config"].value is not None:
        print(explain(config, values["help_config"].value))
        return None
    if values["print_config"].value:
        _print_config(config)
        return None
    if values["progress"].value and recipe:
        said = " ".join(f"--config.{path}={config.flat()[path]}" for path in recipe)
        print(f"recipe for pretrained parameters, unless you say otherwise: {said}", file=sys.stderr)
    workdir = pathlib.Path(values["workdir"].value or f"runs/{name}")
    if values["keep_memory"].value:
        # Here and not in `train`, so that it comes before the first use of a device.
        keep_freed_memory()
    distributed.initialize(
        *(values[n].value for n in PROCESSES),
        connect_timeout=config.parallel.connect_timeout,
        heartbeat_timeout=config.parallel.heartbeat_timeout,
    )
    if jax.process_index():
        tell(False)
    with distributed.together():
        return train(config, workdir, progress=values["progress"].value, keep_memory=False)


def _print_config(config: Config) -> None:
    model = sized_model(config)
    params = jax.eval_shape(lambda: init_params(model, prng_key(0, "shapes of a run")))
    check_groups(config.optimizer, params)
    print(config.to_json())
    print(parameter_table(params))


def _announce(run: Run, state: TrainState, step: int, *, progress: bool) -> None:
    full, little = fill_report(run.stages)
    if progress:
        print(opening_report(run, state, step, full), file=sys.stderr)
    new = not step and not run.config.init_from
    for remark in (little, *(run.config.model.remarks if new else ())):
        if remark:
            logging.warning("%s", remark)


def train(
    config: Config, workdir: str | pathlib.Path, *, progress: bool = True, keep_memory: bool = True
) -> pathlib.Path:
    """Returns the workdir after training to the last step, from its newest checkpoint or from the beginning.

    Args:
        config: what is trained.
        workdir: the folder of the run.
        progress: whether to show a progress bar.
        keep_memory: on a CPU, whether this process keeps freed memory for its next steps, from now on, instead of
            handing it back to the system: faster, most of all before jax is used, and memory stays at its peak.

    Raises:
        UserError: an error that the user can fix; its `exit_code` tells the kind.
    """
    if not isinstance(config, Config):
        raise FlagError(f"config is {str(config)[:80]!r}, a {type(config).__name__}; give what lmjax.resolve() returns")
    if keep_memory:
        keep_freed_memory()
    train_run(config, pathlib.Path(workdir), progress=progress, report=_report)
    return pathlib.Path(workdir)


def train_run(
    config: Config,
    workdir: pathlib.Path,
    *,
    progress: bool,
    report: Callable[[Run, TrainState, str], None] | None = None,
) -> None:
    """Trains to the last step as `train` does, and then calls `report` with the run, its state and its ending."""
    check_run(config)
    first = jax.process_index() == 0
    with claim_workdir(workdir, config) if first else contextlib.nullcontext() as claim:
        if jax.process_count() > 1:
            # The other processes may read the workdir only after process 0 removed what an earlier command left there.
            multihost_utils.sync_global_devices("the workdir is claimed")
        cache_compilations(config.data.cache_path)
        with phase("preparing data and model"):
            run = build(config, workdir)
        if first:
            write_json(workdir / "config.json", config.to_json())
            write_json(workdir / "env.json", environment())
        state, ending = fit(
            run,
            claim,
            progress=progress and first,
            announce=functools.partial(_announce, progress=progress) if first else None,
        )
        if claim is not None:
            claim.done()
            if report is not None:
                report(run, state, ending)


def _report(run: Run, state: TrainState, ending: str) -> None:
    """Prints the last report; an interrupt here leaves the run complete."""
    try:
        with phase("writing the last report"):
            report = final_report(run, state, ending)
        print(report)
    except KeyboardInterrupt:
        print(
            f"\nlmjax: interrupted in the last report; the run has ended at step {int(state.step)}, and {run.workdir} "
            "is complete",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
