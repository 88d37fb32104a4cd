"""Programs that `lmjax convert --format=stablehlo` writes give lmjax's own numbers in a process without lmjax."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from lmjax.commands.convert import main
from lmjax.commands.convert_flags import define
from lmjax.errors import FlagError
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate
from lmjax.interop.stablehlo import write_programs
from tests.inference.writers import MODELS, some_prompts, writer

# A decoder with a window in one of its layers, one with a learned table, and an encoder-decoder with forced ids.
WRITERS = ("window", "learned", "both")
LENGTHS = (5, 1, 8)
# What the process must not import.
BLOCKED = ("lmjax", "flax", "safetensors", "optax", "orbax")
RUN = """
import json, sys
sys.modules |= dict.fromkeys({blocked!r})
sys.path.insert(0, {folder!r})
import portable
prompts = {prompts!r}
found = {{name: portable.load({root!r} + "/" + name).greedy(prompts, 6) for name in {writers!r}}}
encoder = portable.load({root!r} + "/encoder")
outputs = encoder.forward(**{fields!r})
found["encoder"] = {{name: x.tolist() for name, x in outputs.items()}}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def encoder():
    MODELS["encoder"] = ("encoder", {"embedding.types": 2, "positions": "rope", "attention.window": 3}, {})
    yield writer("encoder")
    del MODELS["encoder"]


@pytest.fixture(scope="module")
def found(tmp_path_factory, encoder):
    """What a process with jax alone computes."""
    root = tmp_path_factory.mktemp("programs")
    for name in WRITERS:
        sizes = write_programs(writer(name), root / name, writer(name).tokenizer.save_in)
        assert set(sizes) == {"prefill", "step"}
    assert set(write_programs(encoder, root / "encoder", lambda folder: None)) == {"forward"}
    fields = {name: x.tolist() for name, x in encoder_fields().items()}
    script = RUN.format(
        blocked=BLOCKED,
        folder=str(root / WRITERS[0]),
        root=str(root),
        prompts=some_prompts(*LENGTHS),
        writers=WRITERS,
        fields=fields,
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def encoder_fields():
    rng = np.random.default_rng(0)
    tokens, types = rng.integers(5, 120, (3, 7)), rng.integers(0, 2, (3, 7))
    segments = np.arange(7)[None] < np.array([[7], [4], [1]])
    positions = np.broadcast_to(np.arange(7), (3, 7))
    fields = {"tokens": tokens, "positions": positions, "segment_ids": segments, "type_ids": types}
    return {name: x.astype(np.int32) for name, x in fields.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_greedy_ids_are_those_of_generate(found, name):
    ours = generate(writer(name), some_prompts(*LENGTHS), GenerateConfig(max_new_tokens=6, batch_size=4))
    stop = writer(name).prompts.stop
    for theirs, [each] in zip(found[name], ours, strict=True):
        assert [token for token in theirs if token not in stop][: len(each.ids)] == [
            token for token in each.ids if token not in stop
        ]


def test_an_encoders_outputs_are_ours(found, encoder):
    fields = encoder_fields()
    ours = encoder.model.apply({"params": jax.device_get(encoder.params)}, fields, method="outputs")
    assert set(found["encoder"]) == set(ours)
    for name, x in ours.items():
        seen = fields["segment_ids"] > 0
        np.testing.assert_allclose(np.array(found["encoder"][name])[seen], np.asarray(x)[seen], atol=2e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--from=a", "--workdir=b", "--format=stablehlo"], "--format=stablehlo: is for --to"),
        (["--from=a", "--to=b", "--format=stablehlo", "--family=llama"], "--family=llama: is for checkpoints"),
        (["--from=a", "--to=b", "--format=stablehlo", "--dtype=float16"], "--dtype=float16: lmjax computes in"),
    ],
)
def test_flags_that_contradict_the_format(flags, said, tmp_path, monkeypatch):
    # The model is not opened before these are checked.
    monkeypatch.setattr("lmjax.commands.convert.open_pretrained", None)
    values = define()
    values(["convert", *flags])
    with pytest.raises(FlagError, match=said):
        main(values)


def test_a_model_whose_frequencies_depend_on_the_length_is_refused(tmp_path):
    from lmjax.model.groups import RopeConfig

    rope = RopeConfig(scaling="dynamic", factor=2.0)
    MODELS["dynamic"] = ("encoder", {"positions": "rope", "rope": rope}, {})
    with pytest.raises(FlagError, match="depends on the length of a row"):
        write_programs(writer("dynamic"), tmp_path / "out", lambda folder: None)
    del MODELS["dynamic"]
    assert not (tmp_path / "out").exists()
