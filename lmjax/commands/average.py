"""`lmjax average`: averages the parameters of trained models."""

from __future__ import annotations

import pathlib

from absl import flags

from lmjax.commands.flags import eval_sets
from lmjax.commands.models import prepare
from lmjax.commands.table import aligned
from lmjax.errors import FlagError
from lmjax.paths import shell_quoted
from lmjax.phases import phase
from lmjax.runs.average import Average, Made, average, ingredients


def main(values: flags.FlagValues) -> pathlib.Path:
    """Returns the new workdir."""
    for name in ("models", "to"):
        if not values[name].value:
            raise FlagError("lmjax average needs --models=RUN,RUN and --to=DIR; --help has examples")
    sets, method = eval_sets(values["eval_data"].value), values["method"].value
    if sets and method != "greedy":
        raise FlagError(f"--eval_data={sets[0]['path']}: is for --method=greedy; give that too, or leave it out")
    how = Average(method, _weights(values["weights"].value), values["base"].value or "", tuple(sets))
    prepare()
    workdir = pathlib.Path(values["to"].value)
    with phase("averaging"):
        made = average(ingredients(values["models"].value), how, workdir)
    print(_report(made))
    print(f"\n{workdir}: {method}\nnext: lmjax evaluate --workdir={shell_quoted(workdir)} --data=FILE")
    return workdir


def _weights(texts: list[str]) -> tuple[float, ...]:
    """Returns the weights; raises FlagError for one that is no number."""
    try:
        return tuple(map(float, texts))
    except ValueError as e:
        raise FlagError(f"--weights={','.join(texts)}: {e}; give a number for each model, such as 0.7,0.3") from e


def _report(made: Made) -> str:
    """Returns a table with the weight of each model, and its cost where it is known."""
    rows = [("model", "weight", *(["cost alone"] if made.costs else []))]
    costs = [[f"{cost:.4f}"] for cost in made.costs] or [[]] * len(made.names)
    rows += [(n, f"{x:.4f}", *cost) for n, x, cost in zip(made.names, made.shares, costs, strict=True)]
    return "\n".join(aligned(rows))
