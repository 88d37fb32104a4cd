"""The compiled training step of every family equals the recorded one, so that a refactor that changes it is noticed.

A loss can stay the same while a matrix product is computed twice, or a parameter is no longer split over the mesh.
`RECORD_PROGRAMS=1 pytest -n 0 tests/training/test_programs.py` makes a new record, with the Python and jax of the
first lane; the commit with the new record says why the program changed.
"""

import collections
import json
import os
import pathlib
import re

import flax.linen as nn
import jax
import pytest

from lmjax.axes import RULES
from lmjax.model.parameter_paths import names_of
from lmjax.parallel.mesh import to_device
from lmjax.runs.build import build
from lmjax.training.state import state_maker
from lmjax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("all_devices")

RECORD = pathlib.Path(__file__).with_name("programs.json")
FAMILIES = ("next_token", "mlm,nsp", "span_corruption")
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
CHANGED = (
    "the training step of {family} differs from the recorded program:\n{changes}\nIf this was meant, record it with "
    "`RECORD_PROGRAMS=1 pytest -n 0 tests/training/test_programs.py` and say why in the commit; if not, the refactor "
    "changed what is computed, or how it is split over devices. If only fusions differ, the cause may be another "
    "processor or jaxlib, for which XLA chooses other fusions"
)


def program(run) -> dict[str, dict[str, int | str]]:
    """Returns a summary of a run's training step: counts of operations, and the shardings of its parameters."""
    config, stage = run.config, run.stages[-1]
    with jax.set_mesh(run.mesh), nn.logical_axis_rules(RULES):
        _, abstract = state_maker(run.model, config.optimizer, run.hparams, config.seed, run.mesh)
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        step = make_train_step(run.model, stage.task, config.optimizer, config.accumulation)
        step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        lowered = step.lower(abstract, to_device(stage.local_batch(), run.mesh), run.hparams)
    text = lowered.compile().as_text()
    # Lines have the form `%name = type operation(...)`; a name that contains the name of an operation must not count.
    operations = collections.Counter(re.findall(r"^\s*(?:ROOT )?%?\S+ = .*? ([a-z-]+)\(", text, re.MULTILINE))
    collectives = {name: operations[name] + operations[f"{name}-start"] for name in COLLECTIVES}
    return {
        "matrix products as traced": {"dot_general": lowered.as_text().count("stablehlo.dot_general")},
        "matrix products": {"dot": operations["dot"]},
        "collectives": {name: count for name, count in collectives.items() if count},
        "fusions": dict(sorted(collections.Counter(re.findall(r" fusion\(.*kind=(\w+)", text)).items())),
        "loops": {"while": operations["while"]},
        "shardings": {
            "/".join(names_of(path)): ", ".join(map(str, leaf.sharding.spec))
            for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.params)
        },
    }


def comparable(found: dict, same_version: bool) -> dict:
    """Returns the parts of a summary that are compared: with another version of jax, only what XLA does not decide."""
    if same_version:
        return found
    kinds = dict.fromkeys(found["collectives"], "used")
    return {name: found[name] for name in ("matrix products as traced", "shardings")} | {"collectives": kinds}


def changes(recorded: dict, found: dict) -> list[str]:
    """Returns a line for each number or sharding that differs."""
    lines = []
    for part in recorded:
        for name in sorted(recorded[part].keys() | found[part].keys()):
            before, now = (x[part].get(name, "none") for x in (recorded, found))
            if before != now:
                lines.append(f"  {part}: {name}: {before} was recorded, now {now}")
    return lines


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_training_step_is_the_recorded_program(tiny, tmp_path, family):
    mesh = {"parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2}
    found = program(build(tiny(family, model__num_layers=1, **mesh), tmp_path))
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {"programs": {}}
    if "RECORD_PROGRAMS" in os.environ:
        record = {"jax": minor(jax.__version__), "programs": record["programs"] | {family: found}}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    same = record["jax"] == minor(jax.__version__)
    different = changes(comparable(record["programs"][family], same), comparable(found, same))
    assert not different, CHANGED.format(family=family, changes="\n".join(different))


def test_what_differs_is_named():
    recorded = json.loads(RECORD.read_text())["programs"]["next_token"]
    assert not changes(recorded, recorded)
    path = next(path for path, spec in recorded["shardings"].items() if "fsdp" in spec)
    other = recorded | {"shardings": recorded["shardings"] | {path: "None"}, "collectives": {}}
    lines = changes(comparable(recorded, False), comparable(other, False))
    assert any(f"shardings: {path}: {recorded['shardings'][path]} was recorded, now None" in line for line in lines)
    assert any("all-reduce: used was recorded, now none" in line for line in lines)
