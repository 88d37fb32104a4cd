"""Names in registries and fields of configs, read from the source of lmjax's modules without importing them.

Importing those modules would import jax, which takes seconds, and --help and the answer to a mistyped flag need no jax.
So the source is parsed instead. `tests/commands/test_facts.py` compares the results with the imported objects.
"""

from __future__ import annotations

import ast
import functools
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import lmjax

CONFIG = ("lmjax.config", "Config")
_SCHEMA = "Schema"


class Fact(NamedTuple):
    """A field of a config.

    Attributes:
        default: the default as written in the source; empty: there is none.
        description: the field's description.
        choices: the allowed values, if the field is a choice.
    """

    default: str
    description: str
    choices: tuple[str, ...] = ()


class _Module:
    """A module's source: its top-level assignments and classes, and the modules of its imported names."""

    def __init__(self, name: str):
        # Found by its path, because importlib would import the parent packages to find it.
        place = pathlib.Path(lmjax.__file__).parent.joinpath(*name.split(".")[1:])
        tree = ast.parse((place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text("utf-8"))
        self.package = name.rpartition(".")[0]
        self.values: dict[str, ast.expr] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.values[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                self.values[node.target.id] = node.value
            elif isinstance(node, ast.ImportFrom):
                self.imports |= {a.asname or a.name: (node.module, a.name) for a in node.names}


@functools.cache
def _module(name: str) -> _Module:
    return _Module(name)


def names(module: str, variable: str) -> tuple[str, ...]:
    """Returns the keys of a registry in a module, such as `PRESETS` in `lmjax.model.presets`.

    The registry may be a dict, dicts joined by `|` or `**`, a call with keywords, or a comprehension over another
    registry, over the fields of a config, or over a list of `module.Class` whose classes have a `name`.
    """
    here = _module(module)
    if variable in here.values:
        return tuple(dict.fromkeys(_keys(here, here.values[variable])))
    return names(*here.imports[variable])


def constant(module: str, variable: str) -> Any:
    """Returns a constant of a module, a text or a number."""
    return ast.literal_eval(_module(module).values[variable])


def _keys(here: _Module, node: ast.expr) -> Iterator[str]:
    """Yields the keys of an expression whose value is a dict."""
    match node:
        case ast.Dict():
            for key, value in zip(node.keys, node.values, strict=True):
                yield from _keys(here, value) if key is None else [ast.literal_eval(key)]
        case ast.BinOp():
            yield from _keys(here, node.left)
            yield from _keys(here, node.right)
        case ast.Call():
            yield from (keyword.arg for keyword in node.keywords)
        case ast.Name() if node.id in here.values:
            yield from _keys(here, here.values[node.id])
        case ast.Name():
            yield from names(*here.imports[node.id])
        case ast.Attribute(value=ast.Name(id=owner), attr="model_fields"):
            yield from (each.target.id for each in here.classes[owner].body if isinstance(each, ast.AnnAssign))
        case ast.Attribute():
            yield from names(".".join(here.imports[node.value.id]), node.attr)
        case ast.DictComp(key=ast.Attribute(attr="name")):
            yield from _classes(here, node)
        case ast.DictComp():
            yield from _keys(here, node.generators[0].iter.func.value)
        case _:
            raise TypeError(f"cannot read the names of {ast.unparse(node)[:60]}")


def _classes(here: _Module, node: ast.DictComp) -> dict[str, tuple[str, dict[str, ast.AnnAssign]]]:
    """Returns the classes of a registry by their `name`, each as its module and its annotated assignments."""
    found = {}
    for place in ast.literal_eval(here.values[node.generators[0].iter.args[1].id]):
        name, of_class = place.split(".")
        module = f"{here.package}.{name}"
        body = _module(module).classes[of_class].body
        lines = {line.target.id: line for line in body if isinstance(line, ast.AnnAssign)}
        found[ast.literal_eval(lines["name"].value)] = (module, lines)
    return found


def fields(module: str, name: str) -> dict[str, Fact]:
    """Returns the fields of a config class by dotted path, those of nested configs included.

    The class is a class statement, or made by pydantic's `create_model` from a base and the classes of a registry.
    """
    here = _module(module)
    if name in here.values:
        return _made_fields(here, module, here.values[name])
    if name not in here.classes:
        return fields(*here.imports[name])
    found: dict[str, Fact] = {}
    # In pydantic's order: the fields of the last base are first.
    for base in reversed(here.classes[name].bases):
        if base.id != _SCHEMA:
            found |= fields(*_place(here, module, base.id))
    for node in here.classes[name].body:
        if isinstance(node, ast.AnnAssign) and not ast.unparse(node.annotation).startswith("ClassVar"):
            found |= _field(here, module, node)
    return found


def _made_fields(here: _Module, module: str, made: ast.Call) -> dict[str, Fact]:
    """Returns the fields of a `create_model` class: those of its base, and of each `config` in a registry."""
    said = {keyword.arg: keyword.value for keyword in made.keywords}
    found = fields(*_place(here, module, said["__base__"].id))
    registry, variable = here.imports[said[None].generators[0].iter.func.value.id]
    there = _module(registry)
    for name, (own, lines) in _classes(there, there.values[variable]).items():
        config = fields(*_place(_module(own), own, lines["config"].annotation.id))
        found |= {f"{name}.{path}": fact for path, fact in config.items()}
    return found


def _field(here: _Module, module: str, node: ast.AnnAssign) -> dict[str, Fact]:
    """Returns one field by its name; for a field that holds a config, that config's fields by their paths."""
    if group := _group(here, module, node):
        return {f"{node.target.id}.{path}": fact for path, fact in fields(*group).items()}
    value, description = node.value, ""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("Field"):
        said = {k.arg: k.value for k in value.keywords}
        description = ast.literal_eval(said["description"]) if "description" in said else ""
        value = value.args[0] if value.args else said.get("default")
    default = "" if value is None else ast.unparse(value)
    return {node.target.id: Fact(default, description, tuple(_choices(here, node.annotation)))}


def moved(module: str, name: str) -> dict[str, str]:
    """Returns the former dotted paths of a config class's fields, each with the present one.

    Entries of `moved` that are computed, and those of a `create_model` class, are not in the source and are left out.
    """
    here, found = _module(module), {}
    if name not in here.classes:
        return {} if name in here.values else moved(*here.imports[name])
    for node in here.classes[name].body:
        if isinstance(node, ast.AnnAssign) and node.target.id == "moved":
            found |= ast.literal_eval(node.value) if isinstance(node.value, ast.Dict) else {}
        elif isinstance(node, ast.AnnAssign) and (group := _group(here, module, node)):
            prefix = f"{node.target.id}."
            found |= {prefix + old: prefix + new for old, new in moved(*group).items()}
    return found


def _group(here: _Module, module: str, node: ast.AnnAssign) -> tuple[str, str] | None:
    """Returns the module and the name of the config class that a field holds, or None if it holds a value."""
    for part in ast.walk(node.annotation):
        if isinstance(part, ast.Name) and _is_config(here, module, part.id) and not _is_list(node.annotation):
            return _place(here, module, part.id)
    return None


def _choices(here: _Module, node: ast.expr) -> Iterator[str]:
    """Yields the values of a Literal, including Literals and registries in it; of other annotations, nothing."""
    if isinstance(node, ast.Name) and node.id in here.values:
        yield from _choices(here, here.values[node.id])
    elif isinstance(node, ast.Name) and here.imports.get(node.id, ("",))[0].startswith("lmjax."):
        module, name = here.imports[node.id]
        there = _module(module)
        yield from _choices(there, there.values[name]) if name in there.values else ()
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        for part in node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]:
            match part:
                case ast.Constant():
                    yield part.value
                case ast.Starred():
                    yield from _keys(here, part.value)
                case _:
                    yield from _choices(here, part)


def _place(here: _Module, module: str, name: str) -> tuple[str, str]:
    return (module, name) if name in here.classes else here.imports[name]


def _is_list(annotation: ast.expr) -> bool:
    return ast.unparse(annotation).startswith(("tuple", "list"))


def _is_config(here: _Module, module: str, name: str) -> bool:
    """Returns whether a name is a config class: a subclass of Schema."""
    module, name = _place(here, module, name) if name in here.classes or name in here.imports else ("", "")
    if not module.startswith("lmjax."):
        return False
    here = _module(module)
    if name in here.values:
        return ast.unparse(here.values[name]).startswith("pydantic.create_model")
    bases = [base.id for base in here.classes[name].bases if isinstance(base, ast.Name)] if name in here.classes else []
    return _SCHEMA in bases or any(_is_config(here, module, base) for base in bases)
