"""`lmjax selfcheck`: compares the layouts of a run with one device."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Mapping

from absl import flags

from lmjax.commands.fits import sized_model
from lmjax.commands.table import aligned
from lmjax.commands.train import resolve_flags
from lmjax.config import Config, replace
from lmjax.errors import DifferenceError, FlagError
from lmjax.parallel.topology import topology_devices
from lmjax.runs.ahead import check_planned
from lmjax.runs.selfcheck import STEPS, TOLERANCE, Found, prepared, selfcheck

_DEVICES = 8
# Sizes without --whole; rows of the table beyond the small tokenizer's ids are never read.
_SMALL = {"embed_dim": 64, "num_heads": 4, "mlp_dim": 128, "num_layers": 2}
_LENGTH, _VOCABULARY = 64, 256


def main(values: flags.FlagValues, overrides: Mapping[str, str]) -> list[Found]:
    """Returns how far each layout is from one device, after printing it.

    Raises:
        DifferenceError: a layout computes something else.
    """
    rows, only = values["rows"].value, values["only"].value
    if rows % _DEVICES:
        raise FlagError(f"--rows={rows}: {_DEVICES} devices share the rows; give a multiple of {_DEVICES}")
    config = resolve_flags(values, overrides).config
    config = replace(config, {"parallel.kind": "mesh"})
    check_planned(config)
    config = prepared(config if values["whole"].value else small(config), rows)
    config = replace(config, {"model.vocab_size": sized_model(config).config.vocab_size})
    found = []
    with tempfile.TemporaryDirectory(prefix="lmjax-selfcheck-") as folder:
        for each in selfcheck(config, pathlib.Path(folder), topology_devices(f"cpu:{_DEVICES}"), only):
            found.append(each)
            said = each.skipped and f"skipped: {each.skipped}"
            print(
                f"{each.variant:<34}{said or ('same' if each.same else 'DIFFERS: ' + (each.where or 'the loss'))}",
                flush=True,
            )
    compared = [each for each in found if not each.skipped]
    head = ("relative difference", "loss", "gradient", "parameters")
    table = [(x.variant, *(f"{value:.1e}" for value in (x.loss, x.gradient, x.params))) for x in compared]
    print("\n" + "\n".join(aligned([head, *table])))
    if wrong := [each for each in compared if not each.same]:
        first = wrong[0]
        raise DifferenceError(
            f"lmjax selfcheck: {len(wrong)} of {len(compared)} layouts compute something else than one device; the "
            f"first is {first.variant}: {first.where or 'the loss'}"
        )
    print(f"\n{len(compared)} layouts agree with one device to {TOLERANCE:g}, in the gradient and {STEPS} steps")
    return found


def small(config: Config) -> Config:
    """Returns the config with small sizes; every other choice stays."""
    model = config.model
    fields = {f"model.{name}": min(size, getattr(model, name)) for name, size in _SMALL.items()}
    heads = fields["model.num_heads"]
    grouped = model.num_kv_heads is not None and model.num_kv_heads < model.num_heads
    fields |= {
        "model.num_kv_heads": None if not grouped else max(1, heads // 2) if model.num_kv_heads > 1 else 1,
        "model.head_dim": None,
        "model.vocab_size": _VOCABULARY,
        "task.length": min(_LENGTH, config.task.length),
        "task.target_length": config.task.target_length and min(_LENGTH, config.task.target_length),
        "tokenizer.path": "",
        "tokenizer.vocab_size": _VOCABULARY,
        "stages.until": (),
        "stages.batch_size": (),
        "stages.length": (),
    }
    return replace(config, fields)
