"""Every experiment file loads, with every variant, and says in its header how to run it."""

import ast
import pathlib

import pytest

from lmjax.config import load_experiment

ROOT = pathlib.Path(__file__).parents[1] / "experiments"
FILES = sorted(ROOT.rglob("*.py"))


def variants(path: pathlib.Path) -> list[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "VARIANTS":
            return ast.literal_eval(node.value)
    return [""]


@pytest.mark.parametrize(("path", "variant"), [(p, v) for p in FILES for v in variants(p)], ids=str)
def test_the_experiment_loads(path, variant):
    load_experiment(f"{path}:{variant}")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_its_header_holds_the_command(path):
    assert f"lmjax train --config=experiments/{path.relative_to(ROOT)}" in ast.get_docstring(
        ast.parse(path.read_text())
    )
