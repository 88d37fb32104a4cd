"""The flags of `lmjax doctor`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands.flags import define_help, define_path

DESCRIPTION = """
lmjax doctor: verifies a workdir (files, checkpoints against their manifests, data, versions) and says what is wrong and
what can still be used. Changes nothing without --repair. Exits with 66 if something is wrong.

  lmjax doctor --workdir=runs/mine
  lmjax doctor --workdir=runs/mine --repair
"""


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    define_path(values, "workdir", "the run to verify")
    flags.DEFINE_boolean(
        "repair",
        False,
        "remove what killed saves have left, and move damaged checkpoints aside; nothing else is touched",
        flag_values=values,
    )
    define_help(values)
    return values
