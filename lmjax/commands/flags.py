"""Flags that several commands share, and how `--help` and `--config.a.b=value` are read."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from absl import flags

from lmjax.data.sources import SET_NAME
from lmjax.errors import FlagError
from lmjax.objectives.task import OBJECTIVES


class _Objectives(flags.ArgumentParser):
    """Names of objectives joined by commas."""

    syntactic_help = f"one or several of {', '.join(OBJECTIVES)}, joined by commas"

    def parse(self, argument: str | tuple[str, ...]) -> tuple[str, ...]:
        """Returns the names; raises ValueError for one that is not an objective."""
        names = argument if isinstance(argument, tuple) else tuple(argument.split(","))
        for name in names:
            if name not in OBJECTIVES:
                raise ValueError(f"no objective {name!r}; choose of {', '.join(OBJECTIVES)}")
        return names

    def flag_type(self) -> str:
        """Returns the name of the type, for absl's messages."""
        return "objectives"


def define_objective(values: flags.FlagValues) -> None:
    """Defines --objective."""
    help_text = (
        f"what is trained: {', '.join(OBJECTIVES)}; names joined by commas are trained together: mlm,nsp and mlm,sop "
        "on the same rows, others row by row, as often as --config.task.NAME.rate says (default: next_token)"
    )
    flags.DEFINE(_Objectives(), "objective", None, help_text, values)


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


def define_model(values: flags.FlagValues) -> None:
    """Defines the flags of a command that opens a trained model: --model, --workdir, --dtype, --step and --tensor."""
    flags.DEFINE_string("model", None, "a workdir, a folder of Hugging Face, or a name on its hub", flag_values=values)
    flags.DEFINE_string("workdir", None, "the same, for a workdir", flag_values=values)
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16"], "of parameters and compute (default: the model's)", values
    )
    flags.DEFINE_integer("step", None, "of a workdir's checkpoint (default: the newest)", flag_values=values)
    flags.DEFINE_integer("tensor", 1, "devices that split the model", 1, flag_values=values)


def data_fields(specs: Sequence[str]) -> dict[str, object]:
    """Returns the fields of the config that --data sets: a path, or named sets."""
    if not specs:
        return {}
    named = [spec for spec in specs if "=" in spec and re.match(SET_NAME, spec.partition("=")[0])]
    if not named and len(specs) == 1:
        return {"data.train": specs[0], "data.mixture": ()}
    if len(named) < len(specs):
        odd = next(spec for spec in specs if spec not in named)
        raise FlagError(f"--data={odd}: of several sets each has a name; write --data=NAME={odd}")
    return {"data.mixture": tuple(specs)}


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Returns the arguments without `--config.a.b=value`, and those values by dotted path."""
    rest, overrides = [], {}
    for argument in argv:
        name = argument.lstrip("-")
        if not argument.startswith("-") or not name.startswith("config."):
            rest.append(argument)
            continue
        path, equals, value = name.removeprefix("config.").partition("=")
        if not equals:
            raise FlagError(f"{argument}: give the value after an equals sign, as --config.{path}=VALUE")
        overrides[path] = value
    return rest, overrides


def parse(values: flags.FlagValues, argv: Sequence[str]) -> dict[str, str]:
    """Parses the arguments of a command into `values`, and returns the `--config.` overrides.

    Args:
        values: the command's flags.
        argv: the arguments, without the program and the command.

    Raises:
        FlagError: an unknown flag, a value of the wrong type, or an argument that is no flag.
    """
    rest, overrides = split_overrides(argv)
    try:
        surplus = values(["lmjax", *rest])[1:]
    except flags.Error as e:
        raise FlagError(re.sub(r"invalid literal for int.*", "the value must be an integer", str(e))) from e
    if surplus:
        raise FlagError(f"{surplus[0]!r} is no flag; flags look like --name=value")
    return overrides


def help_text(values: flags.FlagValues, description: str) -> str:
    """Returns a command's help: its description, and every flag with its choices and its default."""
    lines = [description.strip(), ""]
    for name in sorted(values):
        flag = values[name]
        if flag.name != name:
            continue
        choices = getattr(flag.parser, "enum_values", None)
        shown = f"--[no]{name}" if flag.boolean else f"--{name}={'|'.join(choices) if choices else 'VALUE'}"
        default = "" if flag.default in (None, "", []) or flag.boolean else f" (default: {flag.default_as_str})"
        # absl puts the choices in front of an enum's help, where they are shown already.
        text = re.sub(r"^<.*?>: |;\s+repeat this option.*", "", flag.help, flags=re.DOTALL)
        lines += [f"  {shown}", textwrap.indent(textwrap.fill(text + default, 94), " " * 6)]
    return "\n".join(lines)
