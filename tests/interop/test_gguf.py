"""GGUF files have the tensors, settings and tokens that llama.cpp computes with."""

import json

import jax
import numpy as np
import pytest

from lmjax.data.fast_tokenizer import TOKENIZER, FastTokenizer
from lmjax.errors import FlagError
from lmjax.interop.checkpoint import shapes
from lmjax.interop.export import choose_family, tensors_of
from lmjax.interop.gguf_model import FORMS, check_expressible, write_gguf
from lmjax.interop.gguf_vocabulary import check_vocabulary
from lmjax.model.language_model import LanguageModel, abstract_params
from lmjax.model.parameters import flat, unflat
from lmjax.model.presets import PRESETS
from lmjax.objectives.prompts import PromptFormat
from tests.inference.scoring import tokenizer
from tests.inference.tokenizers import MAKERS
from tests.inference.tokenizers import tokenizer as of_kind

gguf = pytest.importorskip("gguf")

SIZES = {"num_layers": 2, "vocab_size": 192, "embed_dim": 64, "num_heads": 4, "mlp_dim": 96, "head_dim": None}
SIZES |= {"max_length": 32, "dtype": "float32", "param_dtype": "float32", "scan_layers": False}
MODELS = {
    "llama": ("llama3_8b", {"num_kv_heads": 2}),
    "qwen2": ("qwen2_0_5b", {"num_kv_heads": 2}),
    "qwen3": ("qwen3_0_6b", {"num_kv_heads": 2, "head_dim": 32}),
    "gemma": ("gemma_2b", {"num_kv_heads": 1, "head_dim": 32}),
    "gemma2": ("gemma2_2b", {"num_kv_heads": 2, "attention.window": 8, "attention.scale": None}),
    "gemma3_text": ("gemma3_1b", {"num_kv_heads": 2, "attention.window": 8, "attention.scale": None}),
    "gpt2": ("gpt2", {}),
    "t5": ("t5_small", {"num_decoder_layers": 2}),
    "bert": ("bert_base", {}),
}


def model(name, **more):
    preset, fields = MODELS[name]
    config = PRESETS[preset].with_fields(SIZES | fields | more)
    description = choose_family(config, ("masked_lm",) if name == "bert" else (), name, {})
    rng = np.random.default_rng(0)
    named = flat(abstract_params(config, description.heads))
    assert named.keys() == shapes(config, description.heads).keys()
    params = {path: rng.normal(0, 1, x.shape).astype(np.float32) for path, x in named.items()}
    return description, unflat(params)


def written(name, folder, dtype="float32", **more):
    """Returns the file's reader, and the tensors of the Hugging Face checkpoint by name."""
    description, params = model(name, **more)
    check_expressible(description)
    prompts = PromptFormat(before=(tokenizer().bos_id,), start=(tokenizer().pad_id,))
    others = write_gguf(description, description.config, params, tokenizer(), prompts, folder / "out", dtype)
    assert not others
    return gguf.GGUFReader(folder / "out" / "model.gguf"), dict(tensors_of(description, description.config, params))


def tensors(reader):
    return {x.name: gguf.quants.dequantize(x.data, x.tensor_type).reshape(x.shape[::-1]) for x in reader.tensors}


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_there_in_the_shape_that_llama_cpp_reads(name, tmp_path):
    reader, theirs = written(name, tmp_path)
    found = tensors(reader)
    skipped = [key for key in theirs if "cls." in key or ("embed_tokens" in key[:22] and name == "t5")]
    assert len(found) == len(theirs) - len(skipped) + (name == "llama" and "rope_freqs.weight" in found)
    # Every matrix is [outputs, inputs], and the numbers of a checkpoint are kept, in another order at most.
    total = sum(float(np.abs(x).astype(np.float64).sum()) for key, x in theirs.items() if key not in skipped)
    if not name.startswith("gemma"):
        freqs = float(np.abs(found.pop("rope_freqs.weight", np.zeros(1))).sum())
        assert sum(float(np.abs(x).astype(np.float64).sum()) for x in found.values()) == pytest.approx(total), freqs
    ups = [x for key, x in found.items() if key.endswith("ffn_up.weight")]
    assert len(ups) == (4 if name == "t5" else 2)
    assert all(x.shape == (96, 64) for x in ups)
    fields = reader.fields
    architecture = FORMS[name].architecture
    assert fields["general.architecture"].contents() == architecture
    assert fields[f"{architecture}.embedding_length"].contents() == 64
    assert fields[f"{architecture}.block_count"].contents() == 2
    assert fields["tokenizer.ggml.add_bos_token"].contents() == (name != "bert")
    assert len(fields["tokenizer.ggml.tokens"].data) == 192


def test_llamas_queries_are_rotated_in_neighbouring_pairs(tmp_path):
    reader, theirs = written("llama", tmp_path)
    ours, halves = tensors(reader)["blk.1.attn_k.weight"], theirs["model.layers.1.self_attn.k_proj.weight"]
    for head in range(2):
        mine, his = ours[16 * head : 16 * head + 16], halves[16 * head : 16 * head + 16]
        np.testing.assert_array_equal(mine[0::2], his[:8])
        np.testing.assert_array_equal(mine[1::2], his[8:])


def test_gemmas_norms_have_their_factor(tmp_path):
    reader, theirs = written("gemma2", tmp_path)
    expected = theirs["model.layers.0.post_feedforward_layernorm.weight"] + 1
    np.testing.assert_allclose(tensors(reader)["blk.0.post_ffw_norm.weight"], expected)
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    assert [reader.fields[f"gemma2.{cap}"].contents() for cap in caps] == [50.0, 30.0]


def test_llama3s_scaling_is_a_tensor_of_factors(tmp_path):
    rope = PRESETS["llama3_2_1b"].rope.with_fields({"original_length": 32, "theta": 100.0})
    reader, _ = written("llama", tmp_path, rope=rope)
    factors = tensors(reader)["rope_freqs.weight"]
    # The fastest rotation is kept, and the slowest is divided by the whole factor.
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(rope.factor)


@pytest.mark.parametrize(("dtype", "steps"), [("float16", 2**11), ("q8_0", 127), ("q4_0", 7)])
def test_matrices_are_rounded_and_norms_are_not(dtype, steps, tmp_path):
    reader, theirs = written("qwen3", tmp_path, dtype)
    found = tensors(reader)
    exact = theirs["model.layers.0.mlp.down_proj.weight"]
    blocks = np.abs(exact).reshape(-1, 32).max(axis=1).reshape(64, 3, 1)
    error = np.abs(found["blk.0.ffn_down.weight"] - exact).reshape(64, 3, 32)
    assert (error <= 1.01 * blocks / steps).all()
    assert error.max() > 0
    np.testing.assert_array_equal(found["blk.0.attn_norm.weight"], theirs["model.layers.0.input_layernorm.weight"])


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("qwen2", {"attention.window": 8}, "no attention.window=8"),
        ("llama", {"mlp": "geglu"}, "no mlp='geglu'"),
        (
            "llama",
            {"rope": PRESETS["llama3_8b"].rope.with_fields({"scaling": "dynamic", "factor": 2.0})},
            "scaling='dy",
        ),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(name, more, said):
    description, _ = model(name, **more)
    with pytest.raises(FlagError, match=said):
        check_expressible(description)


def test_a_family_without_a_form_is_refused():
    config = PRESETS["olmo2_7b"].with_fields(SIZES | {"num_kv_heads": 2})
    with pytest.raises(FlagError, match="goes out as olmo2"):
        check_expressible(choose_family(config, (), None, {}))


def vocabulary_of(kind):
    """Returns a tokenizer; WordPiece in lower case, as llama.cpp has it."""
    found = of_kind(kind)
    if kind != "word_piece":
        return found
    content = json.loads(found.files[TOKENIZER])
    content["normalizer"] = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    content["normalizer"] |= {"strip_accents": None, "lowercase": True}
    return FastTokenizer({TOKENIZER: json.dumps(content).encode()}, found.names)


def test_a_tokenizer_that_keeps_capitals_is_refused():
    with pytest.raises(FlagError, match="WordPiece in lower case alone"):
        check_vocabulary(of_kind("word_piece"))


@pytest.mark.parametrize("kind", MAKERS)
def test_tokens_have_their_text_and_kind(kind):
    """A special token is no text, a byte token is a byte, and the pieces that encode a text spell it."""
    vocabulary = vocabulary_of(kind)
    found = check_vocabulary(vocabulary)
    assert len(found.texts) == len(found.kinds) == vocabulary.vocab_size
    assert (found.scores is None) == (found.model in ("gpt2", "bert"))
    for i in vocabulary.special_ids:
        assert found.kinds[i] in (2, 3, 5), found.texts[i]
    ids = vocabulary.encode("the old king")
    spelt = "".join(found.texts[i] for i in ids).replace("\u2581", " ").replace("\u0120", " ")
    assert spelt.strip() == "the old king"


def test_transformers_computes_the_same_with_the_file(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from lmjax.interop.export import export

    for name, kind in (("llama", "LlamaForCausalLM"), ("qwen3", "Qwen3ForCausalLM"), ("gpt2", "GPT2LMHeadModel")):
        _, _ = written(name, tmp_path / name)
        description, params = model(name)
        export(description, description.config, params, tmp_path / name / "whole")
        make = getattr(transformers, kind)
        whole = make.from_pretrained(tmp_path / name / "whole", dtype=torch.float32).eval()
        config = whole.config
        ours = make.from_pretrained(tmp_path / name / "out", gguf_file="model.gguf", config=config, dtype=torch.float32)
        ids = torch.arange(3, 19)[None]
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(ids).logits, whole(ids).logits, rtol=0, atol=1e-5)


def test_stacked_layers_give_the_same_file(tmp_path):
    """The file of a scanned model is that of the unrolled one."""
    first, _ = written("gpt2", tmp_path / "a")
    description, params = model("gpt2")
    from lmjax.model.transformer import stack_layers

    scanned = description.config.with_fields({"scan_layers": True})
    stacked = jax.tree.map(np.asarray, stack_layers(params))
    write_gguf(description, scanned, stacked, tokenizer(), PromptFormat(), tmp_path / "b", "float32")
    second = gguf.GGUFReader(tmp_path / "b" / "model.gguf")
    for key, x in tensors(first).items():
        np.testing.assert_array_equal(x, tensors(second)[key])


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("t5", "bert")])
def test_llama_cpp_computes_the_same(name, tmp_path):
    """Its cache is in float16, which moves logits by up to a thousandth of the largest."""
    llama_cpp = pytest.importorskip("llama_cpp")
    description, params = model(name)
    norms = 0.0 if name.startswith("gemma") else 1.0
    params = jax.tree.map(
        lambda x: np.float32(0.15) * x if x.ndim > 1 else np.float32(0.1) * x + np.float32(norms), params
    )
    prompts = PromptFormat(before=(tokenizer().bos_id,))
    write_gguf(description, description.config, params, tokenizer(), prompts, tmp_path / "out", "float32")
    theirs = llama_cpp.Llama(
        str(tmp_path / "out" / "model.gguf"), n_ctx=32, logits_all=True, verbose=False, n_threads=1
    )
    ids = list(range(5, 25))
    theirs.eval(ids)
    ours = LanguageModel(description.config.with_fields({"scan_layers": False}))
    hidden = ours.apply({"params": params}, {"tokens": np.array([ids])})
    logits = np.asarray(ours.apply({"params": params}, hidden, method="logits"))[0]
    np.testing.assert_allclose(np.array(theirs.scores[:20]), logits, atol=0.01)
    np.testing.assert_array_equal(np.argmax(theirs.scores[:20], axis=-1), np.argmax(logits, axis=-1))


@pytest.mark.parametrize("kind", MAKERS)
def test_llama_cpp_cuts_texts_into_the_same_tokens(kind, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    vocabulary = vocabulary_of(kind)
    description, params = model("gpt2", vocab_size=vocabulary.vocab_size)
    write_gguf(description, description.config, params, vocabulary, PromptFormat(), tmp_path / "out", "float32")
    path = str(tmp_path / "out" / "model.gguf")
    theirs = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    for text in ("the old king sees a river", "Numbers 12, 345 and names_of_things.", "def f(x):"):
        assert theirs.tokenize(text.encode(), add_bos=False) == vocabulary.encode(text), text
