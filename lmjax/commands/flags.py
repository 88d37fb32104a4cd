"""Flags that several commands share. Imports no jax."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence

from absl import flags

from lmjax.commands import facts
from lmjax.errors import FlagError
from lmjax.nearest import choose

# The flags of a command that several processes run together.
PROCESSES = ("coordinator_address", "num_processes", "process_id")


class _Choice(flags.ArgumentParser):
    """A parser of one name out of a list, or of several names joined by commas."""

    def __init__(
        self, kind: str, known: Collection[str], *, several: bool = False, instead: Mapping[str, str] | None = None
    ):
        # --help lists these names after the flag; the text of a flag that takes several names lists them itself.
        self.enum_values = [] if several else list(known)
        self._kind, self._known, self._several, self._instead = kind, list(known), several, instead or {}
        self.syntactic_help = f"{'one or several' if several else 'one'} of {', '.join(known)}"

    def parse(self, argument: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """Returns the name, or the names; raises ValueError for an unknown name."""
        given = argument if isinstance(argument, tuple) else tuple(argument.split(",") if self._several else [argument])
        for name in given:
            if name not in self._known:
                raise ValueError(self._instead.get(name) or choose(self._kind, name, self._known))
        return given if self._several else given[0]

    def flag_type(self) -> str:
        """Returns the name of the type, for absl's messages."""
        return self._kind


def define_choice(
    values: flags.FlagValues,
    name: str,
    known: Collection[str],
    text: str,
    default: str | None = None,
    instead: Mapping[str, str] | None = None,
) -> None:
    """Defines a flag that takes one of several names; the error for an unknown name suggests the nearest one.

    Args:
        values: to which it is added.
        name: of the flag.
        known: the names that it takes.
        text: for --help.
        default: one of the names.
        instead: what to do in place of names that users may expect, as the text of the error.
    """
    flags.DEFINE(_Choice(name, known, instead=instead), name, default, text, values)


def define_choices(values: flags.FlagValues, name: str, known: Collection[str], text: str) -> None:
    """Defines a flag that takes several of these names, joined by commas; the text lists them."""
    flags.DEFINE(_Choice(name, known, several=True), name, None, text, values)


def define_objective(values: flags.FlagValues) -> None:
    """Defines --objective."""
    known = facts.names("lmjax.objectives.registry", "OBJECTIVES")
    text = (
        f"what is trained: {', '.join(known)}; names joined by commas are trained together: mlm,nsp and mlm,sop "
        f"on the same rows, others row by row, as often as --config.task.NAME.rate says (default: {known[0]})"
    )
    flags.DEFINE(_Choice("objective", known, several=True), "objective", None, text, values)


class _Path(flags.ArgumentParser):
    """A parser of paths that expands `~`, because most shells do not expand it after an equals sign."""

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        """Returns the path with `~` expanded; raises ValueError for one that no file can have."""
        if "\0" in argument:
            raise ValueError("no path has a NUL character")
        return os.path.expanduser(argument)


def define_path(values: flags.FlagValues, name: str, text: str, default: str | None = None) -> None:
    """Defines a flag that names a file or a folder; not needed for paths that are expanded where they are read."""
    flags.DEFINE(_Path(), name, default, text, values)


def define_data(values: flags.FlagValues) -> None:
    """Defines --data."""
    flags.DEFINE_multi_string(
        "data",
        [],
        "training text: a file or a quoted glob of text, JSONL, CSV or TSV, also gzipped; or NAME=PATH, which may be "
        "repeated: a mixture of sets, as often as --config.data.weights=2,1 says, else as their tokens; "
        "--config.data.temperature evens them out (default: stdlib, the standard library of this Python)",
        flag_values=values,
    )


def define_column_names(values: flags.FlagValues) -> None:
    """Defines the flag that names the columns of tables without a header."""
    text = "names of the columns of CSV and TSV files without a header, joined by commas (default: the first line)"
    flags.DEFINE_list("column_names", [], text, flag_values=values)


def define_model(values: flags.FlagValues) -> None:
    """Defines the flags of a command that opens a trained model: --model, --workdir, --dtype, --step and so on."""
    flags.DEFINE_string("model", None, "a workdir, a folder of Hugging Face, or a name on its hub", flag_values=values)
    define_path(values, "workdir", "the same, for a workdir")
    define_path(values, "adapter", "with --model, an adapter of it: the workdir of its run, or a folder of PEFT")
    define_choice(values, "dtype", ["float32", "bfloat16"], "of parameters and compute (default: the model's)")
    define_step(values, "of a workdir's checkpoint")
    flags.DEFINE_integer("tensor", 1, "devices that split the model", 1, flag_values=values)
    define_accept_fields(values)


class _Step(flags.ArgumentParser):
    """A parser of the step of a checkpoint, or of "best"."""

    syntactic_help = "a step, or best"

    def parse(self, argument: str | int) -> str | int:
        """Returns the number of the step, or "best"; raises ValueError for anything else."""
        if argument == "best" or isinstance(argument, int):
            return argument
        if not (argument.isascii() and argument.isdecimal()):
            raise ValueError("give the number of a step, or best")
        return int(argument)

    def flag_type(self) -> str:
        """Returns the name of the type, for absl's messages."""
        return "step"


def define_processes(values: flags.FlagValues, what: str) -> None:
    """Defines the flags of a command that several processes run together."""
    text = f"HOST:PORT of process 0, to {what} in several processes"
    flags.DEFINE_string("coordinator_address", None, text, flag_values=values)
    numbers = {
        "num_processes": f"number of processes that {what} together",
        "process_id": "number of this process, from 0",
    }
    for name, text in numbers.items():
        flags.DEFINE_integer(name, None, text, flag_values=values)


def define_step(values: flags.FlagValues, what: str) -> None:
    """Defines --step."""
    text = f"{what}; best: the one with the best value of the run's --config.evaluation.metric (default: the newest)"
    flags.DEFINE(_Step(), "step", None, text, values)


def define_accept_fields(values: flags.FlagValues) -> None:
    """Defines --accept_fields."""
    flags.DEFINE_list(
        "accept_fields",
        [],
        "fields of a Hugging Face config.json, joined by commas, that lmjax would refuse and that change no number of "
        "the model: it is computed as if they were not there",
        flag_values=values,
    )


def define_help(values: flags.FlagValues) -> None:
    """Defines --help."""
    flags.DEFINE_boolean("help", False, "show this", short_name="h", flag_values=values)


def set_name(spec: str) -> str:
    """Returns the NAME of a data set NAME=PATH; empty if it has none."""
    name, equals, _ = spec.partition("=")
    return name if equals and re.match(facts.constant("lmjax.data.sources", "SET_NAME"), name) else ""


def data_fields(specs: Sequence[str]) -> dict[str, object]:
    """Returns the config fields that --data sets: one path, or named data sets."""
    if not specs:
        return {}
    named = [spec for spec in specs if set_name(spec)]
    if not named and len(specs) == 1:
        return {"data.train": specs[0], "data.mixture": ()}
    if len(named) < len(specs):
        odd = next(spec for spec in specs if spec not in named)
        raise FlagError(f"--data={odd}: with several sets each needs a name; write --data=NAME={odd}")
    return {"data.mixture": tuple(specs)}


def eval_sets(specs: Sequence[str]) -> list[dict[str, str]]:
    """Returns the values of --eval_data as fields of the config; a path without a name gets the name "eval"."""
    sets = []
    for spec in specs:
        name, equals, path = spec.partition("=")
        sets.append({"name": name, "path": path} if equals else {"name": "eval", "path": spec})
    names = [s["name"] for s in sets]
    if len(set(names)) != len(names):
        raise FlagError(f"--eval_data: two sets are called {max(names, key=names.count)!r}; name them, as NAME=PATH")
    return sets
