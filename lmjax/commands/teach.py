"""`lmjax teach`: writes a teacher's predictions for the training rows of a run to a file."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Mapping

from absl import flags

from lmjax.commands.models import prepare
from lmjax.commands.prompts import new_file
from lmjax.commands.train import resolve_flags
from lmjax.config import replace
from lmjax.data.taught import SUFFIX
from lmjax.errors import FlagError
from lmjax.phases import phase
from lmjax.runs.build import build
from lmjax.runs.taught import write_taught


def main(values: flags.FlagValues, overrides: Mapping[str, str]) -> pathlib.Path:
    """Returns the new file."""
    place, to = values["model"].value, values["to"].value
    if not place or not to:
        raise FlagError("lmjax teach needs --model=TEACHER and --to=FILE.safetensors; --help has an example")
    if not to.endswith(SUFFIX):
        raise FlagError(f"--to={to}: is a file that ends in {SUFFIX}; name it {to}{SUFFIX}")
    path = new_file(to, "to")
    config = resolve_flags(values, overrides).config
    fields = {"teacher.place": place} | ({} if config.tokenizer.path else {"tokenizer.path": place})
    config = replace(config, fields)
    prepare()
    with tempfile.TemporaryDirectory(prefix="lmjax-teach-") as folder:
        with phase("preparing data"):
            run = build(config, pathlib.Path(folder) / "run")
        with phase(f"writing {path}"):
            rows, predictions = write_taught(run, path, values["top_k"].value)
    print(
        f"{path}: {rows:,} rows of {predictions} predictions, {values['top_k'].value} tokens each, at temperature "
        f"{config.teacher.temperature:g}, {path.stat().st_size / 2**20:.1f} MiB\n"
        f"next: lmjax train with the same flags and --config.teacher.place={path}"
    )
    return path
