"""transformers loads the checkpoints that lmjax writes; needs torch and transformers.

`pip install '.[parity]'`; without it these tests are skipped, and `test_recorded.py` compares with recorded results.
"""

import pathlib

import jax
import numpy as np
import pytest

from lmjax.interop.checkpoint import Checkpoint
from lmjax.interop.export import choose_family, export
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from tests.interop.cases import CASES
from tests.interop.test_recorded import features, outputs
from tests.thinned import thinned

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
record = pytest.importorskip("tests.interop.record")

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", thinned(CASES, 3))
def test_both_ways_with_other_numbers(name, tmp_path):
    """A model with another seed than the recorded one is imported and exported; in transformers it is unchanged."""
    case = CASES[name]
    model = record.build(case, seed=1)
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = Checkpoint(tmp_path / "theirs")
    description = checkpoint.description
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    params = checkpoint.params(description.config, mesh)
    # As for a model trained here: the original config.json is not used.
    fresh = choose_family(description.config, description.heads, description.model_type, {})
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    extra = {} if pad is None else {"pad_token_id": pad}
    export(fresh, description.config, params, tmp_path / "ours", extra=extra)
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    again.eval()
    batch = record.make_batch(case, model, 1)
    with torch.no_grad():
        before, after = record.forward(case, model, batch), record.forward(case, again, batch)
    names = record.names(before)
    expected = {key: values.numpy() for key, values in batch.items()}
    _, found = outputs(LanguageModel(description.config, description.heads), params, features(expected), names)
    mask = expected.get("decoder_mask", expected["mask"]).astype(bool)
    for key in names:
        np.testing.assert_array_equal(before[key], after[key])
        real = mask if before[key].shape[:2] == mask.shape else slice(None)
        np.testing.assert_allclose(np.asarray(found[key])[real], before[key].numpy()[real], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_automodel_reads_what_is_written(name, tmp_path):
    folder = pathlib.Path(__file__).parent / "recorded" / name
    checkpoint = Checkpoint(folder)
    description = checkpoint.description
    params = checkpoint.params(description.config, make_mesh(ParallelConfig(), jax.devices()[:1]))
    found = choose_family(description.config, description.heads, None, {})
    export(found, description.config, params, tmp_path / "out", shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")).__name__ == CASES[name].model
