"""The layering of the house: who may import whom, and that the host half of the data never imports jax."""

import ast
import itertools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "lmjax"

# A module may import its own layer and those before it.
LAYERS = (
    (
        "arenas",
        "errors",
        "schema",
        "axes",
        "nearest",
        "paths",
        "phases",
        "python_file",
        "hashed_bits",
        "streams",
        "strict_json",
    ),
    ("data", "model"),
    ("objectives",),
    ("adapters", "parallel", "training", "inference", "interop"),
    ("analysis", "compress", "evaluation"),
    ("audit",),
    ("config",),
    ("runs",),
    ("sweep",),
    ("pipelines",),
    ("serving",),
    ("commands", "cli", "__main__", "__init__"),
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


def test_orbax_is_imported_in_one_module():
    """Its v1 API is still moving: a change of it is followed in one place, by the tests too."""
    files = [*MODULES, *(ROOT.parent / "tests").rglob("*.py"), *(ROOT.parent / "experiments").rglob("*.py")]
    found = [p for p in files if any(name.split(".")[0] == "orbax" for name in imports(p))]
    assert [p.relative_to(ROOT.parent).as_posix() for p in found] == ["lmjax/training/checkpoint.py"]


def at_import(path: pathlib.Path) -> set[str]:
    """The modules of lmjax that a module imports when it is imported: not for types alone, nor inside functions."""
    names, known = set(), {f"lmjax.{name_of(p)}" for p in MODULES}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else node.module for name in whole}
    return names & known


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of a graph; empty: there is none."""
    left = dict(graph)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def packages(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Which packages of lmjax import which others."""
    found: dict[str, set[str]] = {}
    for name, others in graph.items():
        mine = name.split(".")[1]
        found.setdefault(mine, set()).update({other.split(".")[1] for other in others} - {mine})
    return found


def test_there_are_no_circles():
    """Neither of modules nor of packages: what stands in a circle can only be read, moved or tested as a whole."""
    graph = {f"lmjax.{name_of(path)}": at_import(path) for path in MODULES}
    assert not circle(graph)
    assert not circle(packages(graph))
    graph["lmjax.data.store"] |= {"lmjax.data.pipeline"}
    assert "lmjax.data.store" in circle(graph | {"lmjax.data.pipeline": {"lmjax.data.store"}})
    graph["lmjax.data.store"] |= {"lmjax.objectives.task"}
    assert {"data", "objectives"} <= set(circle(packages(graph)))


def test_the_picture_of_the_house_has_every_room_in_its_layer():
    tree = ast.parse((ROOT.parent / "colab/guide/pictures.py").read_text())
    (rooms,) = (
        ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "ROOMS"
    )
    drawn = [room for row in rooms for room in row]
    assert {*drawn} == {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"config"}
    heights = [sorted(layer(room) for room in row) for row in reversed(rooms)]
    assert all(low[-1] <= high[0] for low, high in itertools.pairwise(heights)), "a room stands above one that uses it"
