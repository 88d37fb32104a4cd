"""Hidden states and attention weights of every layer equal those of transformers for the same weights."""

import numpy as np
import pytest

from lmjax.inference.forward import forward
from lmjax.interop.checkpoint import Checkpoint
from lmjax.model.language_model import LanguageModel
from tests.interop.cases import CASES
from tests.interop.test_recorded import features, one_device

torch = pytest.importorskip("torch")
record = pytest.importorskip("tests.interop.record")

pytestmark = pytest.mark.filterwarnings("ignore")


def inner(case, model, batch: dict) -> dict[str, tuple]:
    """Returns transformers' hidden states and attention weights for a batch, under our names."""
    model.set_attn_implementation("eager")
    for part in model.modules():  # the sides of some have configs of their own
        if hasattr(part, "config"):
            part.config.output_attentions = True
    with torch.no_grad():
        output = record.forward(case, model, batch)
    prefix = "decoder_" if "decoder_tokens" in batch else ""
    names = {"hidden_states": f"{prefix}hidden_states", "attentions": f"{prefix}attentions"}
    found = {ours: output[theirs] for ours, theirs in names.items()}
    if not prefix:
        return found
    encoder = {"hidden_states": output.encoder_hidden_states, "attentions": output.encoder_attentions}
    return found | {"cross_attentions": output.cross_attentions, "encoder": encoder}


def compare(ours: dict, theirs: dict, queries: np.ndarray, keys: np.ndarray) -> None:
    """Compares one side outside padding; transformers takes the last hidden state after the final norm."""
    states = [*ours["hidden_states"][:-1], ours["hidden"]]
    assert len(states) == len(theirs["hidden_states"])
    for i, (x, y) in enumerate(zip(states, theirs["hidden_states"], strict=True)):
        np.testing.assert_allclose(np.asarray(x)[queries], y.numpy()[queries], atol=3e-5, err_msg=f"state {i}")
    for name, seen in (("attentions", queries), ("cross_attentions", keys)):
        for x, y in zip(ours.get(name, ()), theirs.get(name, ()), strict=True):
            both = np.broadcast_to((queries[:, :, None] & seen[:, None, :])[:, None], x.shape)
            np.testing.assert_allclose(np.asarray(x)[both], y.numpy()[both], atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "gemma2", "bert_masked", "electra_generator", "modernbert", "t5", "bart"]
)
def test_hidden_states_and_attentions(name, tmp_path):
    case = CASES[name]
    model = record.build(case, seed=1)
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    description = checkpoint.description
    batch = record.make_batch(case, model, 1)
    theirs = inner(case, model, batch)
    given = {key: values.numpy() for key, values in batch.items()}
    config = description.config.model_copy(update={"scan_layers": False})
    params = checkpoint.params(config, one_device())
    found = forward(LanguageModel(config, description.heads), params, features(given), True, True)
    mask = given["mask"].astype(bool)
    compare(found, theirs, given.get("decoder_mask", given["mask"]).astype(bool), mask)
    if "encoder" in theirs:
        compare(found["encoder"], theirs["encoder"], mask, mask)
