"""The layering of the house: who may import whom, and that the host half of the data never imports jax."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "lmjax"

# A module may import its own layer and those before it.
LAYERS = (
    ("errors", "schema", "axes", "nearest", "paths", "phases", "streams", "strict_json", "__init__"),
    ("data", "model"),
    ("objectives",),
    ("parallel", "training", "inference", "interop"),
    ("analysis", "evaluation"),
    ("config",),
    ("runs",),
    ("commands", "cli", "__main__"),
)


def layer(module: str) -> int:
    """Returns the number of the layer of `a.b` inside lmjax; the longest name wins."""
    found = [(len(n), i) for i, names in enumerate(LAYERS) for n in names if module == n or module.startswith(f"{n}.")]
    assert found, f"lmjax.{module} stands in no layer of tests/test_layering.py"
    return max(found)[1]


def imports(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def name_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = sorted(ROOT.rglob("*.py"))


def breaches(module: str, names: set[str]) -> list[str]:
    own = [n.removeprefix("lmjax.") for n in names if n.startswith("lmjax.") and n != "lmjax.__version__"]
    found = [n for n in own if layer(n) > layer(module)]
    # data and model share a layer and know nothing of each other.
    top = module.split(".")[0]
    return found + [n for n in own if {top, n.split(".")[0]} == {"data", "model"}]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_imports_what_stands_above_it(path):
    assert not breaches(name_of(path), imports(path))


def test_a_breach_is_seen():
    assert breaches("data.store", {"lmjax.objectives.task.Task"})
    assert breaches("model.layers", {"lmjax.data.store.Store"})
    assert breaches("training.loop", {"lmjax.config.Config"})
    assert not breaches("objectives.task", {"lmjax.data.store.Store"})


def test_data_never_imports_jax():
    """Worker processes read data; whoever imports jax there may touch a device that the trainer owns."""
    modules = [f"lmjax.{name_of(p)}" for p in MODULES if name_of(p).startswith("data")]
    code = f"import sys, {', '.join(modules)}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_tensorflow_and_no_torch(path):
    assert not {n.split(".")[0] for n in imports(path)} & {"torch", "tensorflow", "transformers", "pickle"}
