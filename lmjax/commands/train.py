"""`lmjax train`: flags, the run from its first to its last line, and the table at the end."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from lmjax.commands.flags import data_fields, define_data, define_objective, help_text, parse
from lmjax.commands.report import final_report, opening_report
from lmjax.config import Config, resolve, write_json
from lmjax.errors import FlagError
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameters import parameter_table
from lmjax.model.presets import PRESETS
from lmjax.objectives.task import heads, objective_types
from lmjax.parallel import distributed
from lmjax.parallel.host import cache_compilations, keep_freed_memory
from lmjax.runs.build import Run, build, claim_workdir, environment, vocabulary_rows
from lmjax.runs.fit import fit
from lmjax.runs.trained import open_pretrained
from lmjax.training.groups import check_groups
from lmjax.training.optimizers import OPTIMIZERS
from lmjax.training.schedules import SCHEDULES

DESCRIPTION = """
lmjax train: trains an encoder, a decoder or an encoder-decoder. The family follows from the objective.

  lmjax train                                              next-token prediction on the embedded corpus
  lmjax train --objective=mlm,nsp --config.model.num_layers=6
  lmjax train --objective=span_corruption --data='texts/*.txt' --steps=5000
  lmjax train --minutes=15 --optimizer=muon --schedule=wsd
  lmjax train --init_from=gpt2/ --data=input.txt             a checkpoint of Hugging Face, or a workdir, goes on
  lmjax train --config=experiments/tinyshakespeare.py --data=input.txt

Every field of the config is a flag: --config.a.b=value; --print_config shows them all. The same command again resumes.
Exit codes: 0 done, 64 bad flag, 65 bad data, 66 no checkpoint can be read, 70 diverged, 74 save failed,
75 preempted and saved, 78 the workdir belongs to another config.
"""


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    define_objective(values)
    define_data(values)
    enums = {
        "architecture": (["encoder", "decoder", "encoder_decoder"], "the family, where the objective leaves a choice"),
        "preset": (sorted(PRESETS), "a model of published size, or nano"),
        "optimizer": (sorted(OPTIMIZERS), "what makes updates of gradients"),
        "schedule": ([*sorted(SCHEDULES), "joined"], "how the learning rate goes on after the warm-up"),
        "parallel": (["mesh", "pmap"], "a mesh of data, fsdp and tensor axes, or plain replicas (default: mesh)"),
    }
    for name, (choices, text) in enums.items():
        flags.DEFINE_enum(name, None, choices, text, flag_values=values)
    strings = {
        "config": "an experiment: FILE.py or FILE.py:variant. It is Python and runs: use files that you trust",
        "workdir": "where everything is written (default: runs/OBJECTIVE-DIGEST_OF_THE_CONFIG)",
        "init_from": "a workdir, or a folder or name of a Hugging Face checkpoint: training starts from its numbers, "
        "with its model and its tokenizer",
        "coordinator_address": "HOST:PORT of process 0, to train in several processes",
    }
    for name, text in strings.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    integers = {
        "steps": "updates",
        "seed": "of parameters, order, corruption and dropout",
        "num_processes": "how many processes train together",
        "process_id": "which of them this is",
    }
    for name, text in integers.items():
        flags.DEFINE_integer(name, None, text, flag_values=values)
    flags.DEFINE_float(
        "minutes",
        None,
        "train for this time instead of for a number of steps: the schedule is planned from the measured speed",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "eval_data",
        [],
        "held-out text, PATH or NAME=PATH; may be repeated (default: a part of the training text that "
        "is not trained on)",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "print_config", False, "print the resolved config and a table of parameters, and stop", flag_values=values
    )
    flags.DEFINE_boolean(
        "keep_memory",
        True,
        "on a CPU, keep freed memory for the next step instead of handing it back to the system: faster, and memory "
        "stays at its peak",
        flag_values=values,
    )
    flags.DEFINE_boolean("progress", True, "show a progress bar", flag_values=values)
    flags.DEFINE_boolean("help", False, "show this", short_name="h", flag_values=values)
    return values


def _eval_sets(specs: Sequence[str]) -> list[dict[str, str]]:
    """Returns NAME=PATH flags as fields of the config; a bare path is named "eval"."""
    sets = []
    for spec in specs:
        name, equals, path = spec.partition("=")
        sets.append({"name": name, "path": path} if equals else {"name": "eval", "path": spec})
    names = [s["name"] for s in sets]
    if len(set(names)) != len(names):
        raise FlagError(f"--eval_data: two sets are called {max(names, key=names.count)!r}; name them, as NAME=PATH")
    return sets


# Flags that stand for one field of the config.
_FIELDS = {
    "steps": "steps",
    "minutes": "minutes",
    "seed": "seed",
    "optimizer": "optimizer.name",
    "schedule": "optimizer.schedule",
    "parallel": "parallel.kind",
}


def _resolve(values: flags.FlagValues, overrides: dict[str, str]) -> Config:
    fields: dict[str, Any] = {path: values[name].value for name, path in _FIELDS.items()}
    fields = {path: value for path, value in fields.items() if value is not None}
    fields |= data_fields(values["data"].value)
    if {"steps", "minutes"} <= fields.keys():
        raise FlagError(f"--steps={fields['steps']} and --minutes={fields['minutes']}: give one; either ends the run")
    if values["eval_data"].value:
        fields["data.eval"] = _eval_sets(values["eval_data"].value)
    objective, source = values["objective"].value, None
    if values["init_from"].value:
        if values["preset"].value:
            raise FlagError(f"--preset={values['preset'].value}: --init_from brings its own model; give one of them")
        source = open_pretrained(values["init_from"].value)
        fields |= {"init_from": str(source.folder), "tokenizer.path": str(source.folder)}
        if objective is None and values["config"].value is None:
            objective = (source.objective,)
    return resolve(
        experiment=values["config"].value,
        objective=objective,
        architecture=values["architecture"].value,
        preset=values["preset"].value,
        model=source and source.config.model_copy(update={"param_dtype": "float32"}),
        overrides=overrides,
        fields=fields,
    )


def main(argv: Sequence[str]) -> pathlib.Path | None:
    """Returns the workdir of the run that the flags ask for, once it is trained."""
    values = _flags()
    overrides = parse(values, argv)
    if values["help"].value:
        print(help_text(values, DESCRIPTION))
        return None
    config = _resolve(values, overrides)
    if values["print_config"].value:
        _print_config(config)
        return None
    name = "-".join(config.task.objective)
    workdir = pathlib.Path(values["workdir"].value or f"runs/{name}-{config.digest()}")
    if values["keep_memory"].value:
        keep_freed_memory()
    distributed.initialize(*(values[n].value for n in ("coordinator_address", "num_processes", "process_id")))
    return train(config, workdir, progress=values["progress"].value)


def _print_config(config: Config) -> None:
    size = vocabulary_rows(config, config.tokenizer.vocab_size)
    needed = heads(objective_types(config.task.objective))
    model = LanguageModel(config.model.model_copy(update={"vocab_size": size}), needed)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    check_groups(config.optimizer, params)
    print(config.to_json())
    print(parameter_table(params))


def _announce(run: Run, params: Any, step: int) -> None:
    print(opening_report(run, params, step), file=sys.stderr)


def train(config: Config, workdir: pathlib.Path, *, progress: bool = True) -> pathlib.Path:
    """Returns the workdir, after training there from its newest checkpoint, or from nothing, to the last step.

    Raises:
        UserError: what the user can mend; `exit_code` says which kind.
    """
    first = jax.process_index() == 0
    lock = claim_workdir(workdir, config) if first else None
    try:
        cache_compilations(config.data.cache_path)
        run = build(config, workdir)
        if first:
            write_json(workdir / "config.json", config.to_json())
            write_json(workdir / "env.json", environment())
        state, ending = fit(run, progress=progress and first, announce=_announce if progress and first else None)
        if first:
            print(final_report(run, state, ending))
    finally:
        if lock is not None:
            lock.close()
    return workdir
