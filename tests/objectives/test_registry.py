"""The facts of an objective are in its own file, so no other module contains its name."""

import ast
import pathlib

import pytest

import lmjax
from lmjax.config import default_config, resolve
from lmjax.errors import FlagError
from lmjax.objectives.registry import OBJECTIVES, combinations, objective_types, usual_objective, usual_objectives

ROOT = pathlib.Path(lmjax.__file__).parent
OWN = {name: ROOT.joinpath(*o.__module__.split(".")[1:]).with_suffix(".py") for name, o in OBJECTIVES.items()}


def named(source: str) -> set[str]:
    """Returns the objectives that a string in a module names, alone or joined by commas as in the flag."""
    strings = (n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return {part for text in strings for part in text.split(",")} & OBJECTIVES.keys()


# Words that name something else too: the table of tokens and a field of OpenAI's answers; a command and its requests.
HOMONYMS = {
    "embedding": ("model", "axes.py", "serving/own.py"),
    "chat": ("cli.py", "commands/chat.py", "serving/app.py"),
}


def is_homonym(name: str, path: pathlib.Path) -> bool:
    """Returns whether a word that is an objective's name has another meaning in a module."""
    return any(path.is_relative_to(ROOT / place) for place in HOMONYMS.get(name, ()))


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_other_module_names_an_objective(path):
    found = {n for n in named(path.read_text()) if path != OWN[n] and not is_homonym(n, path)}
    assert not found, f"{path} compares the name of an objective: let its class declare what differs"


def test_a_name_is_seen():
    assert named('x = {"mlm": 1}') == {"mlm"}
    assert named('x = "mlm,nsp" in y') == {"mlm", "nsp"}
    assert not named('"""Trains mlm and nsp."""')


def test_rows_are_shared_where_one_lays_them_out_for_the_other():
    assert combinations() == (("mlm", "nsp"), ("mlm", "sop"))


def test_each_family_has_a_usual_objective():
    found = {a: usual_objective(a) for a in ("encoder", "decoder", "encoder_decoder")}
    assert found == {"encoder": "mlm", "decoder": "next_token", "encoder_decoder": "span_corruption"}
    assert usual_objectives() == (("next_token",), ("mlm", "nsp"), ("span_corruption",))


def test_default_runs_are_those_that_the_objective_declares():
    def found(*names, **fields):
        config = default_config(names, **fields)
        return config.steps, config.batch_size, config.optimizer.learning_rate

    assert found("next_token") == found("mlm", "nsp") == found("seq2seq", architecture="decoder") == (600, 16, 4e-3)
    assert found("masked_diffusion") == (1200, 8, 2e-3)
    assert found("span_corruption") == found("seq2seq") == (900, 8, 3e-3)


def test_predictions_at_different_positions_are_refused(monkeypatch):
    """All objectives of a mixture share one pass over the logits, which uses the positions of the first."""
    monkeypatch.setattr(OBJECTIVES["prefix_lm"], "predicts_at", "prediction_positions")
    with pytest.raises(FlagError, match="prefix_lm predicts at prediction_positions; train one of them"):
        objective_types(("next_token", "prefix_lm"))


@pytest.mark.parametrize("objective", ["mlm,nsp", "sop"])
def test_pairs_need_two_types(objective):
    with pytest.raises(FlagError, match=r"--config.model.embedding.types=3: (nsp|sop) tells texts apart by 2 types"):
        resolve(objective=tuple(objective.split(",")), overrides={"model.embedding.types": "3"})
    assert resolve(objective=("mlm",), overrides={"model.embedding.types": "3"})
