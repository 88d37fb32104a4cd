"""The parsing of flags and of `--config.a.b=value`, what is said of wrong ones, and help texts. Imports no jax."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Collection, Mapping, Sequence

from absl import flags

from lmjax.commands import facts
from lmjax.errors import FlagError
from lmjax.nearest import choose, nearest, nearest_fields

# Flags whose value may be left out, which absl itself does not support.
_OPTIONAL = ("help_config",)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Returns the arguments without the `--config.a.b=value` ones, and the values of these by dotted path."""
    rest, overrides = [], {}
    for argument in argv:
        name = argument.lstrip("-")
        if not argument.startswith("-") or not name.startswith("config."):
            rest.append(argument)
            continue
        path, equals, value = name.removeprefix("config.").partition("=")
        if not equals:
            raise FlagError(f"{argument}: give the value after an equals sign, as --config.{path}=VALUE")
        if path in overrides:
            raise FlagError(
                f"--config.{path} is given twice, as {overrides[path] or 'nothing'} and {value or 'nothing'}; "
                "give it once"
            )
        overrides[path] = value
    return rest, overrides


def parse(
    values: flags.FlagValues,
    argv: Sequence[str],
    same: Mapping[str, str] | None = None,
    *,
    command: str = "lmjax",
    places: str | None = None,
) -> dict[str, str]:
    """Parses the arguments of a command into `values`, and returns the `--config.` overrides.

    Args:
        values: the command's flags.
        argv: the arguments, without the program and the command.
        same: the config field that each of these flags sets; None: the command has no config.
        command: the command's name, for messages.
        places: the flag, a list, that takes the arguments which are no flags; None: there may be none.

    Raises:
        FlagError: an unknown flag or field, a value of the wrong type, a flag or field given twice, or an argument that
            is not a flag.
    """
    rest, overrides = split_overrides(argv)
    rest = [f"{each}=" if each.startswith("-") and each.lstrip("-") in _OPTIONAL else each for each in rest]
    try:
        surplus = values([command, *rest])[1:]
    except flags.UnrecognizedFlagError as e:
        raise FlagError(_unknown(values, e.flagname, same is not None)) from e
    except flags.Error as e:
        raise FlagError(_reworded(str(e))) from e
    if values["help"].value:
        return overrides
    if surplus and places:
        values[places].value = [*values[places].value, *surplus]
    elif surplus:
        raise FlagError(_no_flag(surplus[0], values))
    if same is None and overrides:
        raise FlagError(f"--config.{next(iter(overrides))}: {command} has no config; use its flags")
    _check_once(values, overrides, same or {})
    _check_fields(overrides, values)
    return overrides


def _check_fields(overrides: Mapping[str, str], values: flags.FlagValues) -> None:
    """Raises FlagError for an unknown field, or a value that is not among the field's choices."""
    known = facts.fields(*facts.CONFIG) if overrides else {}
    for path, value in overrides.items():
        if path not in known:
            chosen = {*overrides.values(), *(str(values[n].value) for n in values if values[n].present)}
            raise FlagError(_no_field(path, values, chosen))
        if known[path].choices and value not in known[path].choices:
            name = path.rpartition(".")[2]
            raise FlagError(f"--config.{path}={value}: {choose(name, value, known[path].choices)}")


def _check_once(values: flags.FlagValues, overrides: Mapping[str, str], same: Mapping[str, str]) -> None:
    """Raises FlagError for a flag that is given twice, or together with the field that it sets."""
    for name in values:
        flag = values[name]
        if flag.name == name and flag.present > 1 and not isinstance(flag, flags.MultiFlag):
            raise FlagError(f"--{name} is given {flag.present} times, the last time as {flag.value}; give it once")
        if flag.present and same.get(name) in overrides:
            path = same[name]
            raise FlagError(
                f"--{name} and --config.{path}={overrides[path]}: both set the same field; give one of them"
            )


def _reworded(message: str) -> str:
    """Returns absl's message about a value in lmjax's words."""
    message = re.sub(r"invalid literal for int.*", "the value must be an integer", message)
    message = re.sub(r"could not convert string to float.*", "the value must be a number", message)
    message = re.sub(r"^Missing value for flag (--\w+)$", r"\1: give it a value, as \1=VALUE", message)
    return message.removeprefix("flag ")


def _unknown(values: flags.FlagValues, name: str, has_config: bool) -> str:
    """Returns the error message for an unknown flag: it suggests the nearest flag or config field."""
    paths = list(facts.fields(*facts.CONFIG)) if has_config else []
    plain = name.lower().replace("-", "_")
    exact = nearest_fields(plain, paths) if any(plain in (p, p.rpartition(".")[2]) for p in paths) else ""
    moved = facts.moved(*facts.CONFIG).items() if has_config and not exact else ()
    exact = next((f"it is now --config.{now}" for old, now in moved if plain in (old, old.rpartition(".")[2])), exact)
    hint = _near_flag(plain, values, 1.0) or exact or _near_flag(plain, values, 0.7) or nearest_fields(plain, paths)
    return f"--{name}: no such flag; {hint or '--help lists all flags'}"


def _near_flag(name: str, values: flags.FlagValues, cutoff: float) -> str:
    """Returns "did you mean --FLAG?" for a flag with at least this similarity, or an empty text."""
    return nearest(name, [n for n in values if len(n) > 1], cutoff).replace("mean ", "mean --")


def _no_field(path: str, values: flags.FlagValues, chosen: Collection[str]) -> str:
    """Returns the error message for an unknown config field; it prefers fields in a group of a `chosen` name."""
    if now := facts.moved(*facts.CONFIG).get(path):
        return f"--config.{path}: this field is now --config.{now}"
    paths = facts.fields(*facts.CONFIG)
    if inside := sorted({p.removeprefix(f"{path}.").partition(".")[0] for p in paths if p.startswith(f"{path}.")}):
        return f"--config.{path}: is a group; set one of {', '.join(inside)}, as --config.{path}.{inside[0]}=VALUE"
    group, _, name = path.rpartition(".")
    meant = [p for p in paths if p.endswith(f".{name}") and p.split(".")[-2] in chosen]
    hint = nearest_fields(path, meant or paths) or _near_flag(name, values, 1.0)
    return f"--config.{path}: no field {name} in {group or 'config'}; {hint or '--help_config lists all fields'}"


def _no_flag(argument: str, values: flags.FlagValues) -> str:
    """Returns the error message for an argument that is not a flag."""
    known = {n for n in values if len(n) > 1}
    if argument.partition("=")[0] in known:
        return f"{argument!r} is no flag; write --{argument}"
    name = next((n for n in ("prompt", "data", "from") if n in known), "name")
    return f"{argument!r} is no flag; flags look like --name=value, such as --{name}={shlex.quote(argument)}"


def help_text(values: flags.FlagValues, description: str) -> str:
    """Returns the help text of a command: its description, and every flag with its choices and its default."""
    lines = [description.strip(), ""]
    for name in sorted(values):
        flag = values[name]
        if flag.name != name:
            continue
        choices = getattr(flag.parser, "enum_values", None)
        short = f" or --{flag.short_name}" if flag.short_name and len(flag.short_name) > 1 else ""
        shown = f"--[no]{name}" if flag.boolean else f"--{name}={'|'.join(choices) if choices else 'VALUE'}{short}"
        default = "" if flag.default in (None, "", []) or flag.boolean else f" (default: {flag.default_as_str})"
        # absl adds a remark to the help of flags that may be repeated.
        text = re.sub(r";\s+repeat this option.*", "", flag.help, flags=re.DOTALL)
        lines += [f"  {shown}", textwrap.indent(textwrap.fill(text + default, 94), " " * 6)]
    return "\n".join(lines)
