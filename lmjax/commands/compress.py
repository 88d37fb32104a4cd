"""`lmjax compress`: makes a trained model smaller."""

from __future__ import annotations

import dataclasses
import pathlib

from absl import flags

from lmjax.commands.models import prepare
from lmjax.commands.table import aligned
from lmjax.errors import FlagError
from lmjax.paths import shell_quoted
from lmjax.phases import phase
from lmjax.runs.compress import Compressed, Compression, compress


def main(values: flags.FlagValues) -> pathlib.Path:
    """Returns the new workdir."""
    if missing := [f"--{name}" for name in ("model", "method", "to") if not values[name].value]:
        raise FlagError(f"lmjax compress needs --model=PLACE, --method and --to=DIR; {', '.join(missing)} is not given")
    prepare()
    workdir, place = pathlib.Path(values["to"].value), values["model"].value
    given = {field.name: values[field.name].value for field in dataclasses.fields(Compression)}
    given["column_names"] = tuple(given["column_names"])
    how = Compression(**{name: value for name, value in given.items() if value is not None})
    with phase(f"compressing {place}"):
        made = compress(place, how, workdir, step=values["step"].value, accept_fields=values["accept_fields"].value)
    print(_report(made))
    print(f"\n{workdir}: {how.method}\nnext: lmjax evaluate --workdir={shell_quoted(workdir)} --data=FILE")
    return workdir


def _report(made: Compressed) -> str:
    """Returns a table of the sizes before and after."""
    rows = [("", "before", "after", "ratio")]
    for name, (before, after) in (("parameters", made.parameters), ("bytes", made.bytes)):
        rows.append((name, f"{before:,}", f"{after:,}", f"{after / before:.2f}"))
    if made.zeros is not None:
        rows.append(("zeros in layers", "", f"{made.zeros:.2%}", ""))
    return "\n".join(line.rstrip() for line in aligned(rows))
