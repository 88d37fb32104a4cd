"""The names and fields that `facts` reads from the source equal those of the imported modules."""

import ast
import importlib
import re
import subprocess
import sys

import pytest

from lmjax import cli
from lmjax.commands import facts
from lmjax.commands.config_help import entries
from lmjax.config import Config, default_config
from lmjax.data.sources import SET_NAME
from lmjax.inference.generate.generate import GenerateConfig
from lmjax.inference.score.texts import ScoreConfig
from lmjax.interop.families import FAMILIES
from lmjax.interop.shards import SHARD_BYTES
from lmjax.model.presets import PRESETS
from lmjax.objectives.registry import OBJECTIVES
from lmjax.training.optimizers import OPTIMIZERS
from lmjax.training.schedules import SCHEDULES

HINT = "lmjax/commands/facts.py reads it as text: write it in a form that facts.names knows, or teach it the new one"


@pytest.mark.parametrize(
    ("module", "variable", "registry"),
    [
        ("lmjax.objectives.registry", "OBJECTIVES", OBJECTIVES),
        ("lmjax.model.presets", "PRESETS", PRESETS),
        ("lmjax.interop.families", "FAMILIES", FAMILIES),
        ("lmjax.training.optimizers", "OPTIMIZERS", OPTIMIZERS),
        ("lmjax.training.schedules", "SCHEDULES", SCHEDULES),
    ],
)
def test_the_names_of_a_registry_are_its_keys(module, variable, registry):
    assert facts.names(module, variable) == tuple(registry), HINT


def test_the_fields_of_the_config_are_read_with_choices_and_descriptions():
    known = facts.fields(*facts.CONFIG)
    real = {entry.path: entry for entry in entries(default_config())}
    assert list(known) == list(real), HINT
    for path, fact in known.items():
        assert fact.description == real[path].description, path
        plain = re.fullmatch(r"\w+(\|\w+)+", real[path].allowed) and real[path].allowed != "true|false"
        assert "|".join(fact.choices) == (real[path].allowed if plain else ""), path
    assert known["optimizer.name"].choices == tuple(OPTIMIZERS)
    assert set(known["optimizer.schedule"].choices) == {*SCHEDULES, "joined"}


def test_paths_of_before_are_read_with_those_of_today():
    known = facts.moved(*facts.CONFIG)
    assert known["model.qk_norm"] == "model.attention.qk_norm"
    assert known == {old: Config.moved_to(old) for old in known}, HINT


@pytest.mark.parametrize(
    ("module", "schema"),
    [("lmjax.inference.generate.generate", GenerateConfig), ("lmjax.inference.score.texts", ScoreConfig)],
)
def test_the_fields_of_what_writes_and_scores_are_read_with_defaults(module, schema):
    for path, fact in facts.fields(module, schema.__name__).items():
        at = schema
        *parents, name = path.split(".")
        for parent in parents:
            annotation = at.model_fields[parent].annotation
            at = next(a for a in (annotation, *getattr(annotation, "__args__", ())) if hasattr(a, "model_fields"))
        field = at.model_fields[name]
        assert ast.literal_eval(fact.default) == field.default, path
        assert fact.description == field.description, path


def test_constants_are_read():
    assert facts.constant("lmjax.data.sources", "SET_NAME") == SET_NAME
    assert facts.constant("lmjax.interop.shards", "SHARD_BYTES") == SHARD_BYTES


def test_what_cannot_be_read_is_an_error_and_not_a_shorter_list(tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text("A = {name: 1 for name in open('x')}\n")
    monkeypatch.setattr(facts.lmjax, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises((TypeError, AttributeError)):
        facts.names("lmjax.odd", "A")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_and_a_wrong_flag_import_no_jax(command):
    """Importing jax takes seconds; pydantic and numpy, which take almost half a second, are not imported either."""
    tries = [["--help"], ["--no_such_flag=3"], ["--stpe=1"], ["--config.model.num_layer=3"]]
    takes_arguments = hasattr(importlib.import_module(f"lmjax.commands.{command}_flags"), "ARGUMENTS")
    tries += [] if takes_arguments else [["surplus"]]
    tries += [["--preset=gpt3"]] if command in ("train", "generate") else []
    code = f"""
import sys, contextlib, io
from lmjax import cli
for arguments in {tries}:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            cli.run([{command!r}, *arguments])
            assert "--help" in arguments and "--[no]help" in out.getvalue(), arguments
        except cli.UserError as e:
            assert "--help" not in arguments, e
heavy = {{"jax", "flax", "optax", "numpy", "pydantic", "lmjax.config"}} & set(sys.modules)
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
