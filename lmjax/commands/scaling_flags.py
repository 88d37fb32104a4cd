"""The flags of `lmjax scaling`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands.flags import define_help, define_path

DESCRIPTION = """
lmjax scaling: fits L(N, D) = E + A / N^alpha + B / D^beta to the runs of a sweep over sizes and numbers of tokens
(Hoffmann et al. 2022, approach 3), and says which size and how many tokens a budget of FLOPs is best spent on.

  lmjax scaling --sweep=sweeps/ladder
  lmjax scaling --sweep=sweeps/ladder --flops=1e18,1e19

Writes scaling.html, with a chart, and scaling.md to the folder of the sweep. At least 6 runs, of 3 sizes and 3 numbers
of tokens; sizes count all parameters, and a run counts as it ended.
"""


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    define_path(values, "sweep", "the folder of the sweep")
    flags.DEFINE_string("metric", None, "what is fitted (default: the loss, or bits per byte)", flag_values=values)
    flags.DEFINE_list(
        "flops", [], "budgets, joined by commas (default: 1, 10 and 100 times the largest run)", flag_values=values
    )
    define_help(values)
    return values
