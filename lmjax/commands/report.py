"""What `lmjax train` prints before the first step and after the last."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax

from lmjax.adapters.model import untrained
from lmjax.commands.layout import layout_table
from lmjax.commands.table import aligned
from lmjax.data.sources import STDLIB
from lmjax.inference.generate.showcase import showcase
from lmjax.model.language_model import abstract_params
from lmjax.model.parameters import count_parameters
from lmjax.objectives.records import RecordTask
from lmjax.objectives.registry import architectures, unmasks, usual_objectives
from lmjax.parallel.memory import readable
from lmjax.paths import shell_quoted
from lmjax.runs.build import Run
from lmjax.runs.trained import load_model, trained_model
from lmjax.training.board import write_report
from lmjax.training.metrics import read_lines
from lmjax.training.stages import Stage
from lmjax.training.state import TrainState

# If the share of tokens among the positions of rows is lower than this, a run warns of padding.
_FULL = 0.7


def fill_report(stages: Sequence[Stage]) -> tuple[str, str]:
    """Returns how full the rows of all stages are, and a warning if some are less full than `_FULL`, else "".

    There is no warning of rows that are packed for the layers.
    """
    fills = [stage.fill() for stage in stages]
    said = [f"{_percentages(fill)} full{_packed(stage)}" for fill, stage in zip(fills, stages, strict=True)]
    low = [i for i, fill in enumerate(fills) if fill[""] < _FULL and stages[i].layout is None]
    if not low:
        return "; ".join(said), ""
    shape = stages[low[0]].task.objectives[0]
    flags = f"--config.task.length (now {shape.length})"
    if shape.family.paired:
        flags += f" or --config.task.target_length (now {shape.target_length})"
    return "; ".join(said), (
        f"rows are {said[low[0]]}, and the rest is padding, which costs as much to compute; change {flags}"
    )


def _percentages(fill: dict[str, float]) -> str:
    """Returns the share of positions that hold tokens as text, and the share of each side if there are two."""
    sides = [f"{side} {share:.0%}" for side, share in fill.items() if side]
    return f"{fill['']:.0%}" + (f" ({', '.join(sides)})" if sides else "")


def _packed(stage: Stage) -> str:
    """Returns as text in how many rows the layers read those of a batch; empty, if they read them as they are."""
    if stage.layout is None:
        return ""
    rows = stage.usual_size * stage.layout.microbatches
    return f" (most batches are read as {rows} rows of {stage.layout.length})"


def opening_report(run: Run, state: TrainState, step: int, full: str) -> str:
    """Returns a line that describes the run before it starts, and on several devices a table of its layout.

    Args:
        run: the run.
        state: the shapes of its state.
        step: the step that it starts from.
        full: how full its rows are, from `fill_report`.
    """
    c = run.config
    tokens = sum(store.num_tokens for store in run.train_examples.stores.values())
    data = f"{len(c.data.mixture)} sets" if c.data.mixture else c.data.train
    resumed = f", resumed at step {step}" if step else ""
    line = (
        f"{c.model.family.label}, {_sizes(run, state)}, "
        f"{','.join(c.task.objective)} on {tokens / 1e6:.2f} M tokens of {data}, "
        f"rows {full}, {jax.device_count()} {jax.devices()[0].device_kind} device(s){resumed}, in {run.workdir}"
    )
    return "\n".join([line, *(layout_table(run, state) if run.mesh.size > 1 and c.parallel.kind == "mesh" else ())])


def _sizes(run: Run, state: TrainState) -> str:
    """Returns the number of parameters as text, with an adapter also that of the trained ones and their optimizer."""
    own = count_parameters(state.params)
    if run.config.adapter.kind == "none":
        return f"{own / 1e6:.2f} M parameters"
    kept = untrained(abstract_params(run.model.config, run.model.heads), run.config.adapted)
    total = own + count_parameters(kept)
    optimizer = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state))
    return (
        f"{total / 1e6:.2f} M parameters, of which {own:,} ({own / total:.2%}) are trained "
        f"({run.config.adapter.kind}), optimizer state {readable(optimizer)}"
        + (", the base's layers in int8" if run.config.adapter.base_dtype == "int8" else "")
    )


def _evaluations(run: Run) -> list[dict[str, float]]:
    """Returns the lines of metrics.jsonl that hold an evaluation."""
    name = f"eval/{run.eval_sets[0].name}/loss"
    return [line for line in read_lines(run.workdir) if name in line]


# The most metrics of a task, besides loss and accuracy, that the table shows.
_SHOWN = 8


def _table(run: Run) -> list[str]:
    """Returns the lines of a table with the held-out metrics of the first and the last evaluation."""
    evaluations = _evaluations(run)
    before, after = evaluations[0], evaluations[-1]
    labels = {
        "loss": "loss (nats)",
        "perplexity": "perplexity",
        "bits_per_byte": "bits per byte",
        "accuracy": "accuracy",
    }
    rows = [("", f"step {before['step']}", f"step {after['step']}")]
    for evaluated in run.eval_sets:
        for name in run.config.task.loss_weights():
            prefix = f"eval/{evaluated.name}/{name}/"
            known = [key.removeprefix(prefix) for key in after if key.startswith(prefix)]
            # A task with many classes has metrics for each of them, which metrics.jsonl holds too.
            shown = [key for key in labels if key in known] + [key for key in known if key not in labels][:_SHOWN]
            for key in shown:
                values = (f"{x[prefix + key]:.4f}" if x.get(prefix + key) is not None else "" for x in (before, after))
                rows.append((f"{evaluated.name} {name} {labels.get(key, key)}", *values))
            if name in evaluated.unigram_entropy:
                yardstick = f"{evaluated.unigram_entropy[name]:.4f}"
                rows.append((f"{evaluated.name} {name} unigram entropy, a yardstick", "", yardstick))
    return aligned(rows)


def final_report(run: Run, state: TrainState, ending: str = "") -> str:
    """Returns the table of held-out metrics, a sample, and commands to try next; writes the first two for TensorBoard.

    Args:
        run: the run.
        state: its last state.
        ending: why the run ended early; empty: it did not.
    """
    parts = ["", *_table(run)]
    texts = {"held-out": "\n".join(_table(run))}
    if ending:
        parts += ["", ending]
    if jax.process_count() == 1:
        # The sample is computed on one device, because a batch of one row cannot be split over a mesh.
        if run.config.adapter.kind == "none":
            loaded = trained_model(run, jax.device_get(state.evaluation_params()))
        else:
            loaded = load_model(run.workdir)
        sample = showcase(loaded, run.task.sample(run.eval_sets[0].examples.rows.store, run.config.model.max_length))
        if sample:
            parts += ["", sample]
            texts["sample"] = sample
    if run.config.logging.tensorboard:
        write_report(run.workdir, int(state.step), texts)
    skipped = int(state.skipped)
    if skipped:
        parts += ["", f"{skipped} update(s) were not finite and were left out"]
    if state.spikes is not None:
        parts += ["", f"{int(state.spikes.left_out)} update(s) were spikes and were left out"]
    board = f"tensorboard --logdir={shell_quoted(run.workdir)}  (pip install tensorboard)"
    parts += ["", f"workdir      {run.workdir}", f"TensorBoard  {board}"]
    commands = [f"  {command}" for command in _next_commands(run)]
    return "\n".join([*parts, "", "next:", *commands] if commands else parts)


def _next_commands(run: Run) -> list[str]:
    """Returns commands to try next: generation, a comparison and, on the embedded corpus, other runs."""
    config, commands = run.config, []
    embedded = config.data.train == STDLIB and not config.data.mixture
    if run.model.has_vocabulary:
        prompt = "Return the" if embedded else "A text like those it was trained on"
        prompt += "" if config.model.family.causal or unmasks(config.task.objective) else " [MASK]"
        commands.append(f"lmjax generate --workdir={shell_quoted(run.workdir)} --prompt={shell_quoted(prompt)}")
    if run.config.data.eval and any(isinstance(o, RecordTask) for o in run.task.objectives):
        data, names = shell_quoted(run.config.data.eval[0].path), ",".join(run.config.data.column_names)
        data += f" --column_names={names}" if names else ""
        for command in ("evaluate", "predict"):
            commands.append(f"lmjax {command} --workdir={shell_quoted(run.workdir)} --data={data}")
    commands.append(f"lmjax compare {shell_quoted(run.workdir)} OTHER_WORKDIR")
    if embedded:
        others = [names for names in usual_objectives() if architectures(names)[0] != config.model.architecture]
        commands += [f"lmjax train --objective={','.join(names)}" for names in others]
        commands.append(f"lmjax train --objective={','.join(config.task.objective)} --steps={4 * config.steps}")
    return commands
