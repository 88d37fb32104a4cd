"""The flags of `lmjax compare`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands.flags import define_help, define_path

DESCRIPTION = """
lmjax compare: which differences between runs are real. Runs that differ in their seeds alone are one arm; arms are
compared on the same held-out documents, and over seeds where there are several.

  lmjax compare runs/a runs/b
  lmjax compare runs/mlm-0 runs/mlm-1 runs/nsp-0 runs/nsp-1 --report=nsp
  lmjax compare sweeps/lr                                             all runs of a sweep

The documents of a run that are not scored yet are scored from its newest checkpoint.
"""
# The flag that takes the arguments which are no flags.
ARGUMENTS = "runs"


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    # Flags may stand between and after the runs.
    values.set_gnu_getopt(True)
    flags.DEFINE_list(ARGUMENTS, [], "workdirs of runs, or folders of sweeps; also without --runs=", flag_values=values)
    flags.DEFINE_string(
        "metric", None, "what is compared (default: the loss, or bits per byte where losses differ)", flag_values=values
    )
    define_path(
        values,
        "report",
        "a folder for report.html with the curves, each of which is an SVG file too, report.md and report.csv",
    )
    flags.DEFINE_boolean("documents", True, "score documents that are not scored yet", flag_values=values)
    define_help(values)
    return values
