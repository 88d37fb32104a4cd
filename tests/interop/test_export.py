"""The family as which a model is exported, and the error for a model that no family can express."""

import jax
import numpy as np
import pytest

from lmjax.errors import FlagError, SaveError
from lmjax.interop.checkpoint import Checkpoint
from lmjax.interop.export import choose_family, export
from lmjax.interop.families import FAMILIES
from lmjax.model.language_model import abstract_params
from lmjax.model.presets import PRESETS


def ones(config, heads=()):
    import flax.linen as nn

    return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), nn.unbox(abstract_params(config, heads)))


def test_a_model_of_ours_is_written_as_the_first_family_that_can_say_all_of_it():
    assert choose_family(PRESETS["nano_decoder"], (), None, {}).model_type == "llama"
    assert choose_family(PRESETS["gpt2"], (), None, {}).model_type == "gpt2"


def test_what_it_came_from_is_what_it_goes_out_as():
    known = {"model_type": "mistral"} if "mistral" in FAMILIES else {"model_type": "llama"}
    config = PRESETS["llama2_7b"].model_copy(update={"num_layers": 2})
    assert choose_family(config, (), None, known).model_type == known["model_type"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"attention.qk_norm": "head", "norm": "layernorm", "biases": ("norm",)},
            "no family .* can express",
        ),
        ({"attention.softcap": 3.0, "mlp": "relu2", "positions": "sinusoidal"}, "can express this model"),
    ],
)
def test_a_model_that_no_family_can_express(fields, said):
    config = PRESETS["nano_decoder"].model_copy(update=fields)
    with pytest.raises(FlagError, match=said):
        choose_family(config, (), None, {})


def test_a_family_that_was_asked_for_says_what_it_lacks():
    with pytest.raises(FlagError, match=r"--family=gpt2 cannot express this model, because of: .*mlp='swiglu'"):
        choose_family(PRESETS["nano_decoder"], (), "gpt2", {})
    with pytest.raises(FlagError, match="--family=gpt9: lmjax implements"):
        choose_family(PRESETS["nano_decoder"], (), "gpt9", {})


def test_nothing_is_overwritten(tmp_path):
    config = PRESETS["nano_decoder"].model_copy(update={"vocab_size": 64})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(FlagError, match="exists and is not an empty folder"):
        export(choose_family(config, (), None, {}), config, ones(config), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_failed_export_leaves_no_folder(tmp_path):
    config = PRESETS["nano_decoder"].model_copy(update={"vocab_size": 64})

    def fail(folder):
        raise OSError("the disk is full")

    with pytest.raises(SaveError, match="full"):
        export(choose_family(config, (), None, {}), config, ones(config), tmp_path / "out", beside=fail)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_tensors_are_written_in_the_dtype_asked_for(tmp_path, dtype):
    config = PRESETS["nano_decoder"].model_copy(update={"vocab_size": 64})
    export(choose_family(config, (), None, {}), config, ones(config), tmp_path / "out", dtype=dtype)
    checkpoint = Checkpoint(tmp_path / "out")
    assert {h.dtype.name for h in checkpoint.shards.headers.values()} == {dtype}
    # float32 represents all numbers of float16, and lmjax computes in float32 or bfloat16.
    assert checkpoint.description.config.param_dtype == ("bfloat16" if dtype == "bfloat16" else "float32")


def test_stacked_layers_are_written_as_unrolled_ones_are(tmp_path):
    unrolled = PRESETS["nano_decoder"].model_copy(update={"vocab_size": 64})
    for name, config in (("a", unrolled), ("b", unrolled.model_copy(update={"scan_layers": True}))):
        export(choose_family(config, (), None, {}), config, ones(config), tmp_path / name)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b
