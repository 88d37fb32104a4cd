"""The public API: its names, its signatures, and that `import lmjax` does not import jax."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import lmjax

# Name -> the names of its parameters, with keyword-only ones after a star. A change here breaks scripts of users.
SIGNATURES = {
    "embed": "loaded texts * width batch_size",
    "evaluate": "loaded data config * task fields generation",
    "fill_mask": "loaded texts top_k config",
    "generate": "loaded prompts config * seeds draft names files",
    "load_model": "place * step dtype tensor sequence accept_fields several_rows",
    "perplexity": "loaded texts config",
    "resolve": "* experiment objective architecture preset model init_from accept_fields overrides fields",
    "score": "loaded items config names",
    "stream": "loaded prompt config * draft name files",
    "train": "config workdir * progress keep_memory",
}


def named(function) -> list[str]:
    """Returns the names of a function's parameters, with keyword-only ones after a star."""
    parts, keyword = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            parts.append("*")
            keyword = True
        parts.append(parameter.name)
    return parts


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_stay(name):
    assert " ".join(named(getattr(lmjax, name))) == SIGNATURES[name]


@pytest.mark.parametrize(("name", "expected"), [
    ("__call__", "self texts * targets output_hidden_states output_attentions"), ("encode", "self texts"),
    ("decode", "self ids"),
])  # fmt: skip
def test_signatures_of_a_loaded_model_stay(name, expected):
    assert " ".join(named(getattr(lmjax.LoadedModel, name))) == expected


def test_every_public_name_is_documented_and_none_is_missing():
    for name in lmjax._HOMES:
        assert inspect.getdoc(getattr(lmjax, name))
    assert set(lmjax._HOMES) <= set(dir(lmjax))
    assert set(SIGNATURES) == {name for name in lmjax._HOMES if not inspect.isclass(getattr(lmjax, name))}
    tree = ast.parse(pathlib.Path(lmjax.__file__).read_text())
    typed = {alias.asname: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             for alias in node.names if alias.asname}  # fmt: skip
    assert typed == lmjax._HOMES, "what type checkers see is what there is"
    with pytest.raises(AttributeError, match="'generat'; it offers Config"):
        _ = lmjax.generat


def test_importing_it_imports_no_jax():
    code = "import lmjax, sys; assert not {'jax', 'flax', 'pydantic', 'numpy'} & set(sys.modules), sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
