"""The flags of `lmjax average`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands.flags import define_choice, define_help, define_path

METHODS = ("uniform", "greedy", "spherical", "task_vectors")

DESCRIPTION = """
lmjax average: averages the parameters of trained models that began with the same ones, and writes a workdir that
generates, evaluates, predicts and converts like any other.

  lmjax average --models=runs/a,runs/b,runs/c --to=runs/soup                    equal weights; --weights sets others
  lmjax average --models=runs/a@400,runs/a@500,runs/a@best --to=runs/late       checkpoints of one run; @all: all
  lmjax average --models=runs/a,runs/b,runs/c --method=greedy --to=runs/soup    takes those that help on the dev sets
  lmjax average --models=runs/a,runs/b --method=spherical --weights=0.7,0.3 --to=runs/between
  lmjax average --models=runs/sst2,runs/rude --base=bert/ --method=task_vectors --weights=1,-0.5 --to=runs/polite
"""


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    strings = {
        "models": "the models, joined by commas: workdirs or Hugging Face folders; RUN@STEP, RUN@best and RUN@all are "
        "checkpoints of a run",
        "base": "for task_vectors, the model that all of them began with",
    }
    for name, text in strings.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    define_choice(
        values,
        "method",
        METHODS,
        "uniform: the mean, or the weighted mean; greedy: the mean of those that make it better (Wortsman et al. "
        "2022); spherical: on the arc between two; task_vectors: the base and what each model learned, times its "
        "weight, below 0 to unlearn it (Ilharco et al. 2023)",
        "uniform",
    )
    flags.DEFINE_list("weights", [], "a weight for each model (default: equal ones)", flag_values=values)
    flags.DEFINE_multi_string(
        "eval_data",
        [],
        "for greedy, the development set, PATH or NAME=PATH (default: the evaluation sets of the first run); the "
        "metric is that which this run follows (evaluation.metric)",
        flag_values=values,
    )
    define_path(values, "to", "the new workdir")
    define_help(values)
    return values
