"""Runs a Python file that the user names: an experiment or a sweep. Such a file is code, and must be trusted."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from lmjax.errors import FlagError
from lmjax.nearest import nearest
from lmjax.paths import expanded


def run_file(name: str, *, missing: str, otherwise: str) -> ModuleType:
    """Returns the module of a Python file.

    Args:
        name: its path.
        missing: the message if there is no such file, to which a file of a similar name is added.
        otherwise: what is added if there is none.

    Raises:
        FlagError: there is no such file.
    """
    path = expanded(name)
    if path.suffix != ".py" or not path.is_file():
        beside = sorted(map(str, path.parent.glob("*.py"))) if path.parent.is_dir() else []
        raise FlagError(f"{missing}; {nearest(str(path), beside) or otherwise}")
    spec = importlib.util.spec_from_file_location(f"lmjax_file_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
