"""Checkpoints of transformers give its hidden states, outputs, losses and gradients; exports are equal bit for bit."""

import functools
import itertools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lmjax.interop.checkpoint import Checkpoint
from lmjax.interop.export import choose_family, export, tensors_of
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from tests.interop.cases import CASES

pytestmark = pytest.mark.long

FOLDER = pathlib.Path(__file__).parent / "recorded"
# Our outputs by transformers' names; different classes use one name for different outputs.
NAMES = {
    "logits": ("classifier", "tagger", "replaced_token", "logits", "next_sentence"),
    "prediction_logits": ("logits",),
    "seq_relationship_logits": ("next_sentence",),
    "sop_logits": ("next_sentence",),
    "start_logits": ("start",),
    "end_logits": ("end",),
    "pooler_output": ("pooler",),
    "last_hidden_state": ("hidden",),
}


@functools.cache
def one_device():
    return make_mesh(ParallelConfig(), jax.devices()[:1])


class Loaded(NamedTuple):
    """A checkpoint, its parameters, the model and the recorded values."""

    checkpoint: Checkpoint
    params: Any
    model: LanguageModel
    expected: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=CASES)
def name(request) -> str:
    """Returns a case; the module scope groups the tests of a case, so that lmjax's caches are reused."""
    return request.param


@pytest.fixture(scope="module")
def loaded(name) -> Loaded:
    checkpoint = Checkpoint(FOLDER / name)
    description = checkpoint.description
    params = checkpoint.params(description.config, one_device())
    model = LanguageModel(description.config, description.heads)
    return Loaded(checkpoint, params, model, load_file(FOLDER / name / "expected.safetensors"))


def features(expected: dict) -> dict:
    """Returns the recorded batch under our names."""
    names = {"tokens": "tokens", "mask": "segment_ids", "positions": "positions", "type_ids": "type_ids"}
    batch = {ours: expected[theirs].astype(np.int32) for theirs, ours in names.items() if theirs in expected}
    if "decoder_tokens" not in expected:
        return batch
    decoder = {"decoder_tokens": expected["decoder_tokens"], "decoder_segment_ids": expected["decoder_mask"]}
    return {f"encoder_{k}": v for k, v in batch.items()} | {k: v.astype(np.int32) for k, v in decoder.items()}


def outputs(model: LanguageModel, params, batch: dict, names: list[str]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the hidden states, and outputs by transformers' names."""
    ours = model.apply({"params": params}, batch, method=LanguageModel.outputs)
    found = {name: next(ours[n] for n in NAMES[name] if n in ours) for name in names}
    return ours["hidden"], found


def loss_of(found: dict, expected: dict) -> jax.Array:
    """Returns the recorded kind of loss: cross-entropies over the last axis."""
    mask = expected.get("decoder_mask", expected["mask"])
    total = jnp.zeros(())
    for name, values in found.items():
        if values.shape == mask.shape:
            values = jnp.where(mask == 0, -1e4, values)
        labels, weights = expected[f"label.{name}"], expected[f"weight.{name}"]
        picked = jnp.take_along_axis(jax.nn.log_softmax(values), labels[..., None], axis=-1)[..., 0]
        total -= jnp.sum(picked * weights) / weights.sum()
    return total


def packed_row(loaded: Loaded) -> dict[str, np.ndarray]:
    """Returns one more row with two recorded texts; empty if no output is by token of one side."""
    expected = loaded.expected
    shape = expected["tokens"].shape
    by_token = any(k.startswith("out.") and v.shape[:2] == shape for k, v in expected.items())
    if loaded.model.config.architecture == "encoder_decoder" or not by_token:
        return {}
    # As long as the recorded rows, because dynamic scaling of rotary positions depends on the length.
    texts = {k: [expected[k][1, :5], expected[k][3, :6]] for k in ("tokens", "type_ids") if k in expected}
    texts |= {"segment_ids": [[1] * 5, [2] * 6], "positions": [range(5), range(6)]}
    row = {k: np.zeros((1, shape[1]), np.int32) for k in texts}
    for key, parts in texts.items():
        row[key][0, :11] = np.concatenate(parts)
    return row


class Computed(NamedTuple):
    """Our results for the comparison: of the recorded rows, and the outputs of the packed row."""

    hidden: jax.Array
    found: dict[str, jax.Array]
    loss: jax.Array
    gradient: Any
    packed: dict[str, jax.Array]


@pytest.fixture(scope="module")
def computed(loaded) -> Computed:
    """Returns all results of a case from one program, because compilation takes most of the time."""
    expected = loaded.expected
    batch, packed = features(expected), packed_row(loaded)
    rows = len(expected["tokens"])
    batch = {k: np.concatenate([v, packed[k]]) if packed else v for k, v in batch.items()}
    names = [key.removeprefix("out.") for key in expected if key.startswith("out.")]

    def loss(params):
        hidden, found = outputs(loaded.model, params, batch, names)
        recorded = {k: v[:rows] for k, v in found.items()}
        return loss_of(recorded, expected), (hidden[:rows], recorded, {k: v[rows:] for k, v in found.items()})

    (value, (hidden, found, rest)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(loaded.params)
    return Computed(hidden, found, value, gradient, rest)


def test_hidden_states_and_outputs(loaded, computed):
    """With full rows, and rows padded on the right and on the left; padding is not compared."""
    expected = loaded.expected
    mask = expected.get("decoder_mask", expected["mask"]).astype(bool)
    np.testing.assert_allclose(np.asarray(computed.hidden)[mask], expected["hidden"][mask], rtol=0, atol=2e-5)
    assert computed.found
    for key, values in computed.found.items():
        real = mask if values.shape[:2] == mask.shape else slice(None)
        np.testing.assert_allclose(np.asarray(values)[real], expected[f"out.{key}"][real], rtol=0, atol=2e-5)


def test_loss_and_the_gradient_of_every_parameter(loaded, computed):
    expected, description = loaded.expected, loaded.checkpoint.description
    np.testing.assert_allclose(computed.loss, expected["loss"], rtol=1e-5)
    ours = dict(tensors_of(description, description.config, computed.gradient))
    theirs = {key.removeprefix("grad."): g for key, g in expected.items() if key.startswith("grad.")}
    # A parameter without a gradient here is one that transformers has but never uses.
    assert ours.keys() >= theirs.keys()
    for key, g in theirs.items():
        np.testing.assert_allclose(ours[key], g, rtol=0, atol=1e-4 * max(np.abs(g).max(), 1e-3), err_msg=key)


def test_packed_rows_are_what_they_are_alone(loaded, computed):
    if not packed_row(loaded):
        pytest.skip("one row of several texts is for outputs by token of one side")
    shape = loaded.expected["tokens"].shape
    found = {k: v for k, v in computed.packed.items() if loaded.expected[f"out.{k}"].shape[:2] == shape}
    assert found
    for key, (row, begin, end) in itertools.product(found, ((1, 0, 5), (3, 5, 11))):
        alone = loaded.expected[f"out.{key}"][row, : end - begin]
        np.testing.assert_allclose(found[key][0, begin:end], alone, rtol=0, atol=2e-5, err_msg=key)


def test_out_and_in_again_is_bit_equal(name, loaded, tmp_path):
    description, params = loaded.checkpoint.description, loaded.params
    again = choose_family(description.config, description.heads, description.model_type, description.values)
    export(again, description.config, params, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (FOLDER / name, tmp_path / "out"))
    copies, constants = description.family.copies, description.family.constants
    assert after.keys() - constants == {n for n in before if n not in copies or n in after} - constants.keys()
    for key in before.keys() & after.keys():
        tensor = after[key]
        np.testing.assert_array_equal(tensor.view(np.uint8), before[key].view(np.uint8), err_msg=key)
    assert Checkpoint(tmp_path / "out").description.config == description.config
    original, written = (json.loads((f / "config.json").read_text()) for f in (FOLDER / name, tmp_path / "out"))
    assert written["architectures"] == original["architectures"]


def test_the_family_is_said_without_the_original_config(loaded):
    """As for a model that was trained here: only our config determines the export."""
    description = loaded.checkpoint.description
    fresh = choose_family(description.config, description.heads, description.model_type, {})
    assert fresh.config.model_copy(update={"param_dtype": "float32"}) == description.config
