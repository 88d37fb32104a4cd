"""The error for a model that no family can express lists changes; with these changes it can be exported."""

import pytest

from lmjax.config import default_config, resolve
from lmjax.errors import FlagError
from lmjax.interop.export import choose_family
from lmjax.interop.families import FAMILIES
from lmjax.model.heads import HEADS
from lmjax.model.language_model import abstract_params
from lmjax.model.parameters import count_parameters
from lmjax.model.presets import PRESETS
from lmjax.objectives.registry import OBJECTIVES, architectures, heads, objective_types

DEFAULTS = [(name, architecture) for name in OBJECTIVES for architecture in architectures((name,))]
SOME = ("gpt2", "gemma2_2b", "qwen3_0_6b", "opt_125m", "t5_small", "bert_tiny", "modernbert_base", "nano_decoder")


def flags(error: FlagError) -> dict[str, str]:
    """Returns the overrides in an error message, by dotted path; empty if it has none."""
    _, found, text = str(error).partition("can be exported: ")
    given = [flag.removeprefix("--config.").partition("=") for flag in text.split()]
    return {path: value for path, _, value in given} if found else {}


@pytest.mark.parametrize(("objective", "architecture"), DEFAULTS)
def test_a_default_run_goes_out_or_its_error_says_what_would(objective, architecture):
    used = heads(objective_types((objective,)))
    needed = tuple(head for head in used if HEADS[head].has_parameters and not HEADS[head].in_training_only)
    model = default_config((objective,), architecture).model.model_copy(update={"vocab_size": 512})
    try:
        choose_family(model, needed, None, {})
        return
    except FlagError as error:
        overrides, said = flags(error), str(error)
    if "choice" in needed and architecture != "encoder":
        # Transformers has classes with a score for each of several texts for encoders alone.
        assert said.startswith("no family of Hugging Face can express this")
        return
    assert overrides
    assert all(f"{path.removeprefix('model.')}=" in said.partition("cannot express: ")[2] for path in overrides)
    other = resolve(objective=(objective,), architecture=architecture, overrides=overrides).model
    found = choose_family(other.model_copy(update={"vocab_size": 512}), needed, None, {})
    assert f"{found.model_type} is nearest" in said
    assert count_parameters(abstract_params(found.config, found.heads))


@pytest.mark.parametrize("preset", SOME)
def test_every_family_says_what_it_needs_of_a_model(preset):
    """Or that no change helps, because of another architecture or missing heads."""
    model = PRESETS[preset].model_copy(update={"num_layers": 4, "vocab_size": 512})
    needed = ("masked_lm",) if model.architecture == "encoder" else ()
    objective = {"decoder": "next_token", "encoder": "mlm", "encoder_decoder": "seq2seq"}[model.architecture]
    possible, impossible = 0, []
    for name in FAMILIES:
        try:
            choose_family(model, needed, name, {})
        except FlagError as error:
            overrides, said = flags(error), str(error)
            if not overrides:
                impossible.append(said)
                continue
            other = resolve(model=model, objective=(objective,), overrides=overrides).model
            assert choose_family(other, needed, name, {}).model_type == name
        possible += 1
    assert possible >= {"decoder": 10, "encoder": 3, "encoder_decoder": 4}[model.architecture]
    assert all(" cannot express this " in said for said in impossible)
