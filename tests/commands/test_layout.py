"""The table at the start of a run on several devices says what is split, what is copied, and why."""

import dataclasses
import re

import pytest

from lmjax.commands.layout import layout_table
from lmjax.config import replace
from lmjax.parallel.mesh import make_mesh
from lmjax.runs.build import build, hyperparameters
from lmjax.training.state import state_maker

pytestmark = pytest.mark.usefixtures("all_devices")


def test_each_mesh_says_what_it_splits(tiny, tmp_path):
    run = build(tiny("mlm"), tmp_path)

    def table(**sizes):
        config = replace(run.config, {f"parallel.{axis}": size for axis, size in sizes.items()})
        own = dataclasses.replace(run, config=config, mesh=make_mesh(config.parallel))
        _, state = state_maker(own.model, config.optimizer, hyperparameters(config), 0, own.mesh)
        return "\n".join(layout_table(own, state))

    split = table(data=2, fsdp=2, tensor=2)
    assert split.startswith("mesh data 2 x fsdp 2 x tensor 2: batches in 4 parts\n")
    assert re.search(r"mlp/.*  fsdp x tensor\n", split)
    assert re.search(r"norm/scale.*nothing: no rule splits norm\n", split)
    assert "one device along fsdp and tensor" in table(data=8)
    assert "rows in 2 parts, attention by ring, 2 slices along data" in table(data=4, sequence=2, slices=2)
