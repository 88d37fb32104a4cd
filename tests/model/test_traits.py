"""The families' traits, and that no module compares the name of a family or of a position scheme."""

import ast
import pathlib

import pytest

import lmjax
from lmjax.model.language_model import LanguageModel
from lmjax.model.positions import SCHEMES
from lmjax.model.traits import FAMILIES
from lmjax.objectives.registry import OBJECTIVES, usual_objective

ROOT = pathlib.Path(lmjax.__file__).parent
# Names of variables and fields whose value is the name of a family or of a scheme.
HOLDERS = {"architecture", "positions", "decoder_positions", "cross_positions", "side_positions"}


NAMES = FAMILIES.keys() | SCHEMES.keys() - {"none"}


def _by_name(source: str) -> list[str]:
    """Returns the expressions that compare a family or a scheme with a name, or look one up in a dict of names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            parts = list(ast.walk(node))
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):
            parts = [*node.value.keys, *ast.walk(node.slice)]
        else:
            continue
        holders = {part.attr for part in parts if isinstance(part, ast.Attribute)}
        holders |= {part.id for part in parts if isinstance(part, ast.Name)}
        texts = {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
        if holders & HOLDERS and texts & NAMES:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("room", sorted({path.relative_to(ROOT).parts[0] for path in ROOT.rglob("*.py")}))
def test_no_module_asks_for_a_family_or_a_position_scheme_by_its_name(room):
    paths = sorted((ROOT / room).rglob("*.py")) or [ROOT / room]
    found = [f"{path.relative_to(ROOT)}, {line}" for path in paths for line in _by_name(path.read_text())]
    remedy = "ask a trait of lmjax.model.traits.Family, or of the scheme, and add one where it lacks what is asked"
    assert not found, f"{remedy}:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "config.architecture == 'encoder'",
        "x = 1 if self.config.architecture in ('decoder', 'encoder_decoder') else 2",
        "y = {'encoder': 1, 'decoder': 2}[config.architecture]",
        "if config.side_positions(True) == 'learned': pass",
    ],
)
def test_a_question_by_name_is_seen(source):
    assert len(_by_name(source)) == 1
    assert not _by_name("theirs.architecture == ours.architecture")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_vocabulary_logits_with_the_heads_that_it_names(name, build):
    family = FAMILIES[name]
    model, params = build(name, family.vocabulary_heads)
    assert model.has_vocabulary
    assert name in OBJECTIVES[usual_objective(name)].architectures
    assert not LanguageModel(model.config, ("bare",) if family.causal else ()).has_vocabulary
    sides = {"encoder", "decoder"} & set(params["backbone"])
    assert {f"{side}_" for side in sides} == {side.prefix for side in family.sides} - {""}


def test_traits_follow_from_the_sides():
    traits = {name: (f.paired, f.causal, f.continues, f.predicts) for name, f in FAMILIES.items()}
    assert traits == {
        "encoder": (False, False, False, ""),
        "decoder": (False, True, True, ""),
        "encoder_decoder": (True, True, False, "decoder_"),
    }
