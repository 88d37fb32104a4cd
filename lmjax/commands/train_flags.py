"""The flags of `lmjax train`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands import facts
from lmjax.commands.flags import (
    PROCESSES,
    define_accept_fields,
    define_choice,
    define_data,
    define_help,
    define_objective,
    define_path,
    define_processes,
)

DESCRIPTION = """
lmjax train: trains an encoder, a decoder or an encoder-decoder. The family follows from the objective.

  lmjax train                                              next-token prediction on the embedded corpus
  lmjax train --objective=mlm,nsp --config.model.num_layers=6
  lmjax train --objective=span_corruption --data='texts/*.txt' --steps=5000
  lmjax train --minutes=15 --optimizer=muon --schedule=wsd
  lmjax train --init_from=gpt2/ --data=input.txt             starts from a Hugging Face checkpoint or a workdir
  lmjax train --init_from=bert/ --objective=classification --data=train.tsv --eval_data=dev.tsv     text, label
  lmjax train --config=experiments/tinyshakespeare.py --data=input.txt

Every field of the config is a flag: --config.a.b=value. --help_config explains all fields, --help_config=WORD those
that contain the word; --print_config prints JSON. The same command, given again, resumes the run.
Exit codes: 0 done, 64 bad flag, 65 bad data, 66 no checkpoint can be read, 70 diverged, 74 save failed,
75 preempted and saved, 78 the workdir belongs to another config.
"""

# Flags that stand for one field of the config.
FIELDS = {
    "steps": "steps",
    "minutes": "minutes",
    "epochs": "epochs",
    "on_divergence": "on_divergence",
    "seed": "seed",
    "batch_size": "batch_size",
    "length": "task.length",
    "learning_rate": "optimizer.learning_rate",
    "warmup_steps": "optimizer.warmup_steps",
    "optimizer": "optimizer.name",
    "schedule": "optimizer.schedule",
    "parallel": "parallel.kind",
}
# All flags that set a field, including those that do more than store a value.
SAME = FIELDS | {
    "objective": "task.objective",
    "architecture": "model.architecture",
    "data": "data.train",
    "eval_data": "data.eval",
    "init_from": "init_from",
    "accept_fields": "accept_fields",
}


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    define_objective(values)
    define_data(values)
    known = facts.fields(*facts.CONFIG)
    enums = {
        "architecture": (
            known["model.architecture"].choices,
            "the family, if the objective can train several",
        ),
        "preset": (
            sorted(facts.names("lmjax.model.presets", "PRESETS")),
            "a model of published size, or nano, with the tokenizer's vocabulary",
        ),
        "optimizer": (sorted(known["optimizer.name"].choices), "the optimizer"),
        "schedule": (
            sorted(known["optimizer.schedule"].choices),
            "the schedule of the learning rate after the warm-up",
        ),
        "on_divergence": (
            known["on_divergence"].choices,
            "what follows updates in a row that are not finite: the run stops, or goes back to its last good "
            "checkpoint and on past their batches (default: stop)",
        ),
        "parallel": (
            known["parallel.kind"].choices,
            "a mesh of data, fsdp and tensor axes, or plain replicas (default: mesh)",
        ),
    }
    for name, (choices, text) in enums.items():
        define_choice(values, name, choices, text)
    strings = {
        "config": "an experiment: FILE.py or FILE.py:variant. It is Python and runs: use files that you trust",
        "init_from": "a workdir, or a folder or name of a Hugging Face checkpoint: training starts from its parameters "
        "with its model and its tokenizer",
        "help_config": "explain every field of the config, with its value under the other flags, its allowed values "
        "and what it does, and stop; =WORD: the fields that hold the word",
    }
    for name, text in strings.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    where = "the folder for everything that the run writes (default: runs/OBJECTIVE-WHAT_DIFFERS-DIGEST_OF_THE_CONFIG)"
    define_path(values, "workdir", where)
    integers = {
        "steps": "number of updates",
        "seed": "seed of parameters, order, corruption and dropout",
        "batch_size": "rows of a step, on all devices and in all microbatches together",
        "length": "tokens in a row; in an encoder-decoder, in a row of the encoder",
        "warmup_steps": "steps in which the learning rate rises to its peak",
    }
    for name, text in integers.items():
        flags.DEFINE_integer(name, None, text, flag_values=values)
    flags.DEFINE_float("learning_rate", None, "the peak learning rate", flag_values=values, short_name="lr")
    flags.DEFINE_float(
        "minutes",
        None,
        "train for this time instead of for a number of steps: the schedule is planned from the measured speed",
        flag_values=values,
    )
    flags.DEFINE_float("epochs", None, "passes over the training rows, instead of steps", flag_values=values)
    flags.DEFINE_multi_string(
        "eval_data",
        [],
        "held-out text, PATH or NAME=PATH; may be repeated (default: a part of the training text that "
        "is not trained on)",
        flag_values=values,
    )
    define_processes(values, "train")
    _define_switches(values)
    define_accept_fields(values)
    define_help(values)
    return values


def _define_switches(values: flags.FlagValues) -> None:
    switches = {
        "print_config": (False, "print the resolved config as JSON and a table of parameters, and stop"),
        "keep_memory": (
            True,
            "on a CPU, keep freed memory for the next step instead of handing it back to the system: faster, and "
            "memory stays at its peak",
        ),
        "progress": (True, "show a progress bar"),
    }
    for name, (default, text) in switches.items():
        flags.DEFINE_boolean(name, default, text, flag_values=values)


# Flags of `lmjax train` about where, how it is shown, and by which processes.
_OTHERS = ("workdir", "print_config", "help_config", "progress", "keep_memory", *PROCESSES)


def define_trained() -> flags.FlagValues:
    """Returns the flags that say what is trained, for commands that look at a run and do not make one."""
    values = define()
    for name in _OTHERS:
        delattr(values, name)
    return values
