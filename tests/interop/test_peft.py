"""Adapters in PEFT's format: what PEFT computes with them, and what it wrote itself, bit for bit."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lmjax.adapters.config import AdapterConfig
from lmjax.adapters.merge import merged
from lmjax.adapters.model import make_model, trained
from lmjax.errors import DataError, FlagError
from lmjax.interop.checkpoint import Checkpoint
from lmjax.interop.peft import TENSORS, Adapter, read_adapter, write_adapter
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameters import flat, overlaid, unboxed, unflat
from lmjax.parallel.mesh import ParallelConfig, make_mesh

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::Warning")

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
CASES = {
    "llama": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, max_position_embeddings=32)),
        ["q_proj", "o_proj", "down_proj"],
    ),
    "bert": (
        lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, max_position_embeddings=32)),
        ["query", "intermediate.dense"],
    ),
    "t5": (
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
        ),
        ["q", "wo"],
    ),
    "gpt2": (
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)
        ),
        ["c_attn", "c_proj"],
    ),
}


@pytest.fixture(
    scope="module", params=[("llama", "lora"), ("bert", "dora"), ("t5", "rslora"), ("gpt2", "lora")], ids=str
)
def written(request, tmp_path_factory):
    """Returns a folder of a model, one of an adapter that PEFT wrote, and the model with it in torch."""
    name, kind = request.param
    folder = tmp_path_factory.mktemp(name)
    torch.manual_seed(0)
    make, targets = CASES[name]
    base = make().eval()
    base.save_pretrained(folder / "base")
    options = {"use_rslora": kind == "rslora", "use_dora": kind == "dora"}
    fields = peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets, init_lora_weights=False, **options)
    model = peft.get_peft_model(base, fields).eval()
    model.save_pretrained(folder / "adapter")
    return folder, model


def opened(folder):
    checkpoint = Checkpoint(folder / "base")
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    config = checkpoint.description.config.with_fields({"scan_layers": False})
    description = dataclasses.replace(checkpoint.description, config=config)
    return description, checkpoint.params(config, mesh), read_adapter(folder / "adapter", description)


def test_logits_are_those_of_peft(written):
    folder, model = written
    description, base, adapter = opened(folder)
    ids = np.random.default_rng(0).integers(3, 40, size=(2, 6)).astype(np.int32)
    paired = description.config.family.paired
    batch = {"encoder_tokens": ids, "decoder_tokens": ids} if paired else {"tokens": ids}
    ours = make_model(description.config, description.heads, adapter.config)
    params = overlaid(base, unflat(adapter.arrays))
    outputs = lambda m, p: m.apply({"params": p}, batch, method=LanguageModel.outputs)  # noqa: E731
    names = {"logits", "masked_lm"}
    (found,) = (x for name, x in outputs(ours, params).items() if name in names)
    with torch.no_grad():
        given = torch.tensor(ids, dtype=torch.long)
        expected = model(given, decoder_input_ids=given).logits if paired else model(given).logits
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5, rtol=1e-4)
    plain = outputs(LanguageModel(description.config, description.heads), merged(params, adapter.config))
    (whole,) = (x for name, x in plain.items() if name in names)
    np.testing.assert_allclose(whole, found, atol=2e-5, rtol=1e-4)


def test_read_and_written_again_is_equal_bit_for_bit(written, tmp_path):
    folder, _ = written
    description, _, adapter = opened(folder)
    write_adapter(tmp_path, description, adapter)
    before, after = load_file(folder / "adapter" / TENSORS), load_file(tmp_path / TENSORS)
    assert before.keys() == after.keys()
    for name, x in before.items():
        np.testing.assert_array_equal(after[name], x, err_msg=name)
    again = read_adapter(tmp_path, description)
    assert again.config == adapter.config
    fields = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert (fields.r, fields.lora_alpha) == (3, 7)


def test_what_the_format_cannot_express_is_refused(written, tmp_path):
    folder, _ = written
    description, _, _ = opened(folder)
    config = AdapterConfig(kind="lora", targets="query|embedding", rank=2)
    model = make_model(description.config, description.heads, config)
    own = flat(trained(unboxed(init_params(model, jax.random.key(0))), config))
    adapter = Adapter(config, {path: np.asarray(x) for path, x in own.items()}, "base")
    if not description.config.head.tied:
        write_adapter(tmp_path, description, adapter)
        found = read_adapter(tmp_path, description).arrays["embedding/lora_a"]
        np.testing.assert_array_equal(found, own["embedding/lora_a"])
        return
    # PEFT's adapter of a tied table leaves the logits, and its matrix of query, key and value has one A.
    with pytest.raises(FlagError, match=r"give --merge for the whole model"):
        write_adapter(tmp_path, description, adapter)


def test_an_adapter_of_another_model_is_refused(written):
    folder, _ = written
    description, _, _ = opened(folder)
    other = description.config.with_fields({"num_layers": 1, "num_decoder_layers": None})
    with pytest.raises(DataError, match="is this its base"):
        read_adapter(folder / "adapter", dataclasses.replace(description, config=other))
