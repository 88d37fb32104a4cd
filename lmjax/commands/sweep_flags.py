"""The flags of `lmjax sweep`: those of `lmjax train` that say what is trained, and its own. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands import facts, train_flags
from lmjax.commands.flags import PROCESSES, define_choice, define_path

DESCRIPTION = """
lmjax sweep: trains many runs that differ in a few fields, and compares them.

  lmjax sweep --grid='optimizer.learning_rate=1e-4,3e-4,1e-3;seed=0:3' --steps=500              prints the plan
  lmjax sweep --grid='optimizer.learning_rate=1e-4,3e-4,1e-3;seed=0:3' --steps=500 --workdir=sweeps/lr --run
  lmjax sweep --grid='objective=mlm|mlm,nsp;seed=0:3' --workdir=sweeps/nsp --run    bars: values that hold commas
  lmjax sweep --sweep=experiments/ablations/norm_position.py --workdir=sweeps/norm --run
  lmjax sweep --grid='optimizer.learning_rate=1e-4..1e-2:log;model.norm_position=pre,post' --search=tpe --trials=20 \
      --workdir=sweeps/search --run                                                 a search, rounds of --members runs
  lmjax sweep --workdir=sweeps/lr --run                                             goes on with what is there

The flags of lmjax train, --config.a.b=value included, are given to every run; each name in --grid is one of them. The
same command, given again, resumes the runs that were cut off and tries those that crashed again; it does not repeat
those that have ended. Several of these commands may work in one --workdir at a time.
Exit codes: 0 all runs have ended, 64 bad flag, 70 a run crashed, 74 save failed, 75 preempted and saved, 78 the workdir
belongs to another sweep.
"""

SAME = train_flags.SAME
# Flags of `lmjax train` about where, how it is shown, and by which processes.
_OTHERS = ("workdir", "print_config", "help_config", "progress", *PROCESSES)


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = train_flags.define()
    for name in _OTHERS:
        delattr(values, name)
    strings = {
        "sweep": "a file whose get_sweep() returns the runs. It is Python and runs: use files that you trust",
        "grid": "the runs: FIELD=VALUE,VALUE;FIELD=VALUE|VALUE;seed=0:3, all combinations of them",
        "metric": "what is shown and compared, such as eval/heldout/loss (default: the loss of the first set)",
    }
    for name, text in strings.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    units = "what all runs spend the same amount of, which sets their steps (default: each has the steps of its config)"
    define_choice(values, "match", facts.constant("lmjax.sweep.cost", "UNITS"), units)
    controls = facts.fields(*facts.CONFIG)["data.control"].choices
    text = "a negative control, added for every run: the same run on data without what could be learned (default: none)"
    define_choice(values, "control", controls, text)
    define_path(values, "workdir", "the folder of the sweep: sweep.json, results.jsonl, runs/NAME/")
    flags.DEFINE_integer(
        "processes", 1, "processes that train at the same time, each with its share of the GPUs or cores", 1,
        flag_values=values,
    )  # fmt: skip
    text = "how the runs are trained: by this process or --processes of this machine, or by as many Slurm jobs"
    define_choice(values, "launcher", ("local", "slurm"), text, "local")
    text = "a parameter of the Slurm jobs, NAME=VALUE, as partition=gpu, gpus_per_node=1, time=240; may be repeated"
    flags.DEFINE_multi_string("slurm", [], text, flag_values=values)
    text = (
        "print what starts --processes workers elsewhere, a Kubernetes JobSet or commands for TPUs; train nothing here"
    )
    define_choice(values, "print", facts.constant("lmjax.sweep.manifests", "KINDS"), text)
    text = "choose points by the results of earlier runs, from the values and the ranges LOW..HIGH of --grid (Optuna)"
    define_choice(values, "search", facts.constant("lmjax.sweep.search", "SEARCHES"), text)
    flags.DEFINE_integer("trials", None, "the number of runs of a search", 1, flag_values=values)
    text = "steps, joined by commas, at each of which the worse half of the runs that train together stops"
    flags.DEFINE_list("rungs", [], text, flag_values=values)
    flags.DEFINE_integer(
        "members", None, "the most runs that are trained together as one program (default: all that share it, divided "
        "by --processes)", 1, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("since", None, "for --worker: when the sweep was launched", flag_values=values)
    worker = "train what is left of the sweep in --workdir, without a plan and without a report; launchers start it"
    switches = {
        "run": (False, "train the runs; without it, only print the plan"),
        "worker": (False, worker),
        "progress": (True, "show the progress of all runs"),
    }
    for name, (default, text) in switches.items():
        flags.DEFINE_boolean(name, default, text, flag_values=values)
    return values
