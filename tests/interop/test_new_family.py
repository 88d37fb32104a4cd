"""A Hugging Face family is added by one file and one line: its checkpoints and tokenizers are exported and imported."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.data.special_tokens import CLASS_OF_MODEL
from lmjax.interop.export import choose_family, export
from lmjax.interop.families import FAMILIES, register
from lmjax.interop.tokenizer_export import CONFIG, export_tokenizer
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameters import unboxed
from lmjax.runs.trained import load_model
from tests.inference.scoring import tokenizer
from tests.interop import toy_family

CONFIG_OF_TOY = ModelConfig.model_validate(
    {"architecture": "decoder", "positions": "rope", "norm": "rmsnorm", "mlp": "swiglu", "biases": ()}
    | {"embed_dim": 16, "num_heads": 2, "mlp_dim": 24, "num_layers": 2, "max_length": 16, "vocab_size": 180}
    | {"head.tied": False, "scan_layers": False}
)


@pytest.fixture
def toy():
    register(toy_family.FAMILIES)
    yield "toy"
    del FAMILIES["toy"], CLASS_OF_MODEL["toy"]


def test_a_checkpoint_and_its_tokenizer_go_out_and_come_in(toy, tmp_path):
    params = unboxed(init_params(LanguageModel(CONFIG_OF_TOY), jax.random.key(0)))
    export(choose_family(CONFIG_OF_TOY, (), toy, {}), CONFIG_OF_TOY, params, tmp_path)
    export_tokenizer(tokenizer(), tmp_path, toy, CONFIG_OF_TOY.max_length)
    said = json.loads((tmp_path / "config.json").read_text())
    assert (said["model_type"], said["architectures"]) == ("toy", ["ToyForCausalLM"])
    assert {name.partition(".")[0] for name in load_file(tmp_path / "model.safetensors")} == {"toy", "lm_head"}
    loaded = load_model(tmp_path)
    ids = loaded.tokenizer.encode("The king")
    expected = LanguageModel(CONFIG_OF_TOY).apply({"params": params}, {"tokens": np.array([ids])}, method="outputs")
    np.testing.assert_allclose(loaded(ids).logits[0, : len(ids)], expected["logits"][0], atol=1e-5)
    # The family's own file gives the special tokens around a text, and that there are token types.
    assert load_tokenizer(str(tmp_path)).names["cls_token"] == "[CLS]"
    written = json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"]["single"]
    assert [next(iter(part)) for part in written] == ["SpecialToken", "Sequence", "SpecialToken"]
    assert "token_type_ids" in json.loads((tmp_path / CONFIG).read_text())["model_input_names"]


def test_a_folder_without_names_has_the_special_tokens_of_the_familys_class(toy, tmp_path):
    export_tokenizer(tokenizer(), tmp_path, toy, 16)
    (tmp_path / CONFIG).unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "toy"}))
    assert load_tokenizer(str(tmp_path)).cls_id == tokenizer().cls_id
