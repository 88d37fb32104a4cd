"""`lmjax train`: flags, the run from its first to its last line, and the table at the end."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from absl import flags

from lmjax.commands.flags import define_data, define_objective, help_text, parse
from lmjax.commands.report import final_report, opening_report
from lmjax.config import Config, resolve, write_json
from lmjax.data.pipeline import batches
from lmjax.errors import FlagError
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameters import parameter_table
from lmjax.model.presets import PRESETS
from lmjax.objectives.task import objective_types
from lmjax.parallel import distributed
from lmjax.parallel.axes import RULES
from lmjax.parallel.host import keep_freed_memory
from lmjax.parallel.mesh import to_device
from lmjax.parallel.peak import peak_flops
from lmjax.run import Run, build, claim_workdir, environment, vocabulary_rows
from lmjax.training.checkpoint import Checkpoints
from lmjax.training.evaluate import Evaluator
from lmjax.training.loop import Loop
from lmjax.training.metrics import MetricsWriter, Timers
from lmjax.training.preemption import StopRequest
from lmjax.training.state import TrainState, state_maker
from lmjax.training.step import make_eval_step, make_train_step

DESCRIPTION = """
lmjax train: trains an encoder, a decoder or an encoder-decoder. The family follows from the objective.

  lmjax train                                              next-token prediction on the embedded corpus
  lmjax train --objective=mlm,nsp --config.model.num_layers=6
  lmjax train --objective=span_corruption --data='texts/*.txt' --steps=5000
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
    }
    for name, (choices, text) in enums.items():
        flags.DEFINE_enum(name, None, choices, text, flag_values=values)
    strings = {
        "config": "an experiment: FILE.py or FILE.py:variant. It is Python and runs: use files that you trust",
        "workdir": "where everything is written (default: runs/OBJECTIVE-DIGEST_OF_THE_CONFIG)",
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


def _resolve(values: flags.FlagValues, overrides: dict[str, str]) -> Config:
    given = {name: values[name].value for name in ("steps", "seed", "data")}
    fields: dict[str, Any] = {"steps": given["steps"], "seed": given["seed"], "data.train": given["data"]}
    fields = {path: value for path, value in fields.items() if value is not None}
    if values["eval_data"].value:
        fields["data.eval"] = _eval_sets(values["eval_data"].value)
    return resolve(
        experiment=values["config"].value,
        objective=values["objective"].value,
        architecture=values["architecture"].value,
        preset=values["preset"].value,
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
    heads = tuple(head for o in objective_types(config.task.objective) for head in o.heads)
    model = LanguageModel(config.model.model_copy(update={"vocab_size": size}), heads)
    print(config.to_json())
    print(parameter_table(jax.eval_shape(lambda: init_params(model, jax.random.key(0)))))


def train(config: Config, workdir: pathlib.Path, *, progress: bool = True) -> pathlib.Path:
    """Returns the workdir, after training there from its newest checkpoint, or from nothing, to the last step.

    Raises:
        UserError: what the user can mend; `exit_code` says which kind.
    """
    first = jax.process_index() == 0
    lock = claim_workdir(workdir, config) if first else None
    try:
        _cache_compilations(config)
        run = build(config, workdir)
        if first:
            write_json(workdir / "config.json", config.to_json())
            write_json(workdir / "env.json", environment())
        state = _fit(run, progress=progress and first)
        if first:
            print(final_report(run, state))
    finally:
        if lock is not None:
            lock.close()
    return workdir


def _cache_compilations(config: Config) -> None:
    """Keeps compiled programs for later runs, unless jax was told where to keep them."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(config.data.cache_path) / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _fit(run: Run, *, progress: bool) -> TrainState:
    """Returns the state after the last step."""
    config, mesh, hparams = run.config, run.mesh, run.hparams
    timers = Timers()
    with (
        jax.set_mesh(mesh),
        nn.logical_axis_rules(RULES),
        Checkpoints(run.workdir, config.checkpoint) as checkpoints,
        # Asked to stop while it compiles, a run makes its next step, saves, and leaves.
        StopRequest() as stop,
    ):
        make_state, abstract = state_maker(run.model, config.optimizer, hparams, config.seed, mesh)
        with timers.time("compilation"):
            step = jax.jit(
                make_train_step(run.model, run.task, config.optimizer, config.accumulation),
                donate_argnums=0,
                out_shardings=(jax.tree.map(lambda x: x.sharding, abstract), None),
            )
            compiled = step.lower(abstract, to_device(run.local_batch(), mesh), hparams).compile()
            restored = checkpoints.restore(abstract)
            state = make_state() if restored is None else restored
        start = int(state.step)
        if progress:
            print(opening_report(run, state), file=sys.stderr)
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        evaluator = Evaluator(
            sets=run.eval_sets,
            step=jax.jit(make_eval_step(run.model, run.task)),
            mesh=mesh,
            token_bytes=jax.device_put(run.token_bytes(), replicated),
            loss_weights=config.task.loss_weights(),
        )
        stream = batches(
            run.train_examples,
            len(run.train_examples),
            seed=config.seed,
            batch_size=config.batch_size,
            start_step=start,
            num_steps=max(config.steps - start, 0),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=config.data.workers,
            prefetch=config.data.prefetch,
        )
        peak = peak_flops()
        with stream, _writer(run, start) as writer:
            return Loop(
                steps=config.steps,
                max_skipped=config.max_skipped,
                evaluation=config.evaluation,
                checkpoint=config.checkpoint,
                logging=config.logging,
                step=compiled,
                hparams=hparams,
                batches=stream,
                mesh=mesh,
                evaluator=evaluator,
                checkpoints=checkpoints,
                writer=writer,
                stop=stop,
                timers=timers,
                flops_per_step=run.flops_per_step(),
                peak_flops=peak and peak * (1 if jax.default_backend() == "cpu" else jax.device_count()),
                progress=progress,
            ).run(state)


def _writer(run: Run, start: int) -> contextlib.AbstractContextManager[MetricsWriter | None]:
    """Returns the writer of metrics in the first process, and nothing in the others."""
    if jax.process_index():
        return contextlib.nullcontext()
    return MetricsWriter(run.workdir, run.config.logging, start)
