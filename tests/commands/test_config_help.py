"""--help_config: every field of the config, with a value that a flag accepts, allowed values and a description."""

import re

import pytest

from lmjax import cli
from lmjax.commands.config_help import entries
from lmjax.config import default_config, resolve
from lmjax.errors import FlagError


def test_every_field_says_what_it_may_be_and_what_it_does():
    for entry in entries(default_config()):
        assert entry.description, f"{entry.path} has no description"
        assert entry.allowed, entry.path
        assert "<" not in entry.allowed.replace("<=", "").replace("< ", ""), f"{entry.path}: {entry.allowed}"


def test_the_values_shown_are_those_that_flags_take():
    config = resolve(objective=("mlm", "nsp"), overrides={"data.mixture": "a=a.txt,b=b.txt", "minutes": "3"})
    values = {entry.path: entry.value for entry in entries(config)}
    assert values["data.mixture"] == "a=a.txt,b=b.txt"
    # Empty values are given by leaving the flag out.
    again = resolve(overrides={path: value for path, value in values.items() if value})
    assert again == config


def test_fields_are_found_by_a_word_and_shown_by_group(capsys):
    cli.run(["train", "--objective=mlm,nsp", "--config.optimizer.warmup_steps=7", "--help_config=warm-?up"])
    out = capsys.readouterr().out
    assert re.match(r"optimizer: [A-Z].*\.\n", out)
    assert out.partition("\n")[2].startswith(
        "  --config.optimizer.warmup_steps=7  (an integer >= 0 or none)\n      steps of linear"
    )
    assert "num_layers" not in out
    cli.run(["train", "--objective=mlm,nsp", "--help_config"])
    whole = capsys.readouterr().out
    assert "--config.task.objective=mlm,nsp" in whole
    assert "--config.optimizer.name=adamw  (adamw|adam|" in whole
    assert all(f"--config.{entry.path}=" in whole for entry in entries(default_config()))
    with pytest.raises(FlagError, match=r"matches no field; did you mean --config\.model\.num_layers"):
        cli.run(["train", "--help_config=num_layerz"])
