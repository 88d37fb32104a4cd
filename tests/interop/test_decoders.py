"""Decoders: old and new names give one config, windows and experts are in the right layers, experts on a mesh.

`test_recorded.py` compares their outputs with transformers.
"""

import contextlib
import operator
import pathlib

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lmjax.axes import RULES
from lmjax.errors import FlagError
from lmjax.interop.checkpoint import Checkpoint, describe
from lmjax.interop.export import choose_family, export, tensors_of
from lmjax.interop.families.llama import period
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel, abstract_params
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from tests.interop.test_recorded import FOLDER, features

pytestmark = pytest.mark.usefixtures("all_devices")

PATH = pathlib.Path("config.json")
SIZES = {
    "vocab_size": 51,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
CLASSES = {
    "llama": "LlamaForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "opt": "OPTForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
FULL, WINDOW = "full_attention", "sliding_attention"


def config(model_type: str, **values) -> ModelConfig:
    """Returns the config of a file; one key-value head is right for any number of query heads."""
    kv_heads = {} if model_type in ("gpt_neox", "opt") else {"num_key_value_heads": 1}
    known = SIZES | kv_heads | {"model_type": model_type, "architectures": [CLASSES[model_type]]}
    return describe(PATH, {k: v for k, v in (known | values).items() if v is not ...}).config


LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
PROPORTION = {"partial_rotary_factor": 0.75}


@pytest.mark.parametrize(
    ("model_type", "old", "new"),
    [
        ("llama", {}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}),
        ("llama", {"rope_theta": 7, "rope_scaling": None}, {"rope_parameters": {"rope_theta": 7.0}}),
        (
            "llama",
            {"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 7.0, "factor": 2.0}},
        ),
        (
            "llama",
            {"rope_theta": 7.0, "rope_scaling": {"rope_type": "llama3"} | LLAMA_3},
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 7.0} | LLAMA_3},
        ),
        ("mixtral", {"rope_theta": 1e6}, {"rope_parameters": {"rope_type": "default"}}),
        (
            "gpt_neox",
            {"rotary_emb_base": 7, "rotary_pct": 0.67},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 0.67}},
        ),
        ("gpt_neox", {"rotary_pct": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}),
        ("phi3", {"rope_theta": 7} | PROPORTION, {"rope_parameters": {"rope_theta": 7.0} | PROPORTION}),
        (
            "gemma3_text",
            {"rope_theta": 7.0, "rope_local_base_freq": 5.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            {
                "rope_parameters": {
                    FULL: {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0},
                    WINDOW: {"rope_type": "default", "rope_theta": 5.0},
                }
            },
        ),
        ("gemma3_text", {}, {"rope_parameters": {FULL: {"rope_theta": 1e6}, WINDOW: None}}),
    ],
)
def test_both_spellings_of_rotary_positions_are_one(model_type, old, new):
    if model_type == "gpt_neox":
        old, new = (values | {"hidden_size": 64} for values in (old, new))
    if model_type == "phi3":
        old, new = (values | {"hidden_size": 32} for values in (old, new))
    # Four layers, so that Gemma 3 has both kinds of layers.
    pattern = {"sliding_window_pattern": 3} if model_type == "gemma3_text" else {}
    before, after = config(model_type, **old, **pattern), config(model_type, **new, **pattern)
    assert before == after
    # The written file has both the old and the new names; one of them is enough.
    written = choose_family(before, (), model_type, {}).values
    names = {"rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq", "rotary_emb_base", "rotary_pct"}
    names |= {"partial_rotary_factor"}
    v5 = {k: v for k, v in written.items() if k not in names - {"rope_parameters"}}
    v4 = {k: v for k, v in written.items() if k != "rope_parameters"}
    assert describe(PATH, v5).config == before
    assert describe(PATH, v4).config == before


@pytest.mark.parametrize(
    ("model_type", "field", "ours", "default"),
    [
        ("mistral", "sliding_window", "attention.window", 4096),
        ("mixtral", "sliding_window", "attention.window", None),
        ("gemma2", "attn_logit_softcapping", "attention.softcap", 50.0),
        ("gemma2", "final_logit_softcapping", "head.softcap", 30.0),
        ("gemma3_text", "final_logit_softcapping", "head.softcap", None),
    ],
)
def test_null_is_not_a_field_that_is_left_out(model_type, field, ours, default):
    get = operator.attrgetter(ours)
    assert get(config(model_type)) == default
    assert get(config(model_type, **{field: None})) is None
    assert get(config(model_type, **{field: 7})) == 7


def windows(model: ModelConfig) -> list[int | None]:
    """Returns the window of every layer."""
    return [None if model.attention.is_global(i) else model.attention.window for i in range(model.num_layers)]


@pytest.mark.parametrize(
    ("model_type", "values", "expected"),
    [
        ("qwen2", {"sliding_window": 9}, [None] * 4),
        ("qwen2", {"sliding_window": 9, "use_sliding_window": True}, [None] * 4),
        ("qwen2", {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1}, [None, 9, 9, 9]),
        ("qwen2", {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 0}, [9] * 4),
        (
            "qwen2",
            {"sliding_window": 9, "use_sliding_window": True, "layer_types": [FULL, WINDOW, FULL, WINDOW]},
            [None, 9, None, 9],
        ),
        ("qwen3_moe", {"sliding_window": 9, "use_sliding_window": True}, [9] * 4),
        ("gemma2", {"sliding_window": 9}, [9, None, 9, None]),
        ("gemma3_text", {"sliding_window": 9}, [9] * 4),
        ("gemma3_text", {"sliding_window": 9, "sliding_window_pattern": 3}, [9, 9, None, 9]),
        ("gemma3_text", {"sliding_window": 9, "_sliding_window_pattern": 4}, [9, 9, 9, None]),
        ("gemma3_text", {"layer_types": [FULL] * 4}, [None] * 4),
    ],
)
def test_windows_lie_in_their_layers(model_type, values, expected):
    model = config(model_type, **values)
    assert windows(model) == expected
    assert windows(choose_family(model, (), model_type, {}).config) == expected


@pytest.mark.parametrize("every", range(1, 5))
def test_period(every):
    for offset in range(every):
        assert period([i % every == offset for i in range(8)]) == (every, offset)
    assert period([False] * 3) == (0, 0)
    assert period([True, True, False]) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"decoder_sparse_step": 2}, [1, 3]),
        ({"decoder_sparse_step": 4}, [3]),
        ({"mlp_only_layers": [1, 3]}, [0, 2]),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, [3]),
    ],
)
def test_experts_lie_in_their_layers(values, expected):
    model = config("qwen3_moe", num_experts=3, num_experts_per_tok=2, **values)
    again = choose_family(model, (), "qwen3_moe", {}).config
    assert [i for i in range(4) if model.moe.has_experts(i)] == expected
    assert [i for i in range(4) if again.moe.has_experts(i)] == expected
    assert choose_family(model, (), "qwen3_moe", {}).rows()


@pytest.mark.parametrize(
    ("model_type", "values", "said"),
    [
        ("llama", {"no_rope_layers": [1, 1, 1, 0]}, "no_rope_layers=.* does not know this field"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved=True"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": "two"}}, "factor='two'"),
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 2, **dict([*LLAMA_3.items()][-1:])}},
            "=32: lmjax imp",
        ),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2} | PROPORTION}, "partial_rotary_factor=0.75"),
        ("mistral", {"attention_bias": True}, "attention_bias=True: lmjax does not know"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise=0.1"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}, "lmjax implements 'full_attention' in every"),
        ("qwen2", {"layer_types": [FULL] * 3}, "layer_types=.* for each of 4 layers"),
        ("qwen2", {"layer_types": [[], {}, 1, 2]}, "layer_types=.* for each of 4 layers"),
        ("qwen2", {"layer_types": [WINDOW] * 4}, "layer_types=.* there is no sliding_window"),
        ("qwen2", {"use_mrope": True}, "use_mrope=True"),
        ("qwen3_moe", {"mlp_only_layers": ["1"]}, "mlp_only_layers=.* must be the numbers of layers"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers=.* in every n-th layer"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1, 2, 3]}, "mlp_only_layers=.* leaves experts to no layer"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma", {"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
        ("gemma", {"hidden_act": "silu"}, "hidden_act='silu'"),
        (
            "gemma3_text",
            {"rope_parameters": {FULL: {}}, "rope_scaling": {"rope_type": "linear", "factor": 2}},
            "is not what rope_parameters says",
        ),
        ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar=-1: must be positive"),
        ("gemma3_text", {"rope_parameters": {WINDOW: {"rope_type": "linear", "factor": 2}}}, "not 'sliding_attention'"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "rope.long_factors has 1 numbers",
        ),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling=.* longrope alone"),
        ("gpt_neox", {"rotary_emb_base": 7, "rope_theta": 8}, "rope_theta=8"),
        ("opt", {"word_embed_proj_dim": 512, "ffn_dim": 40}, "word_embed_proj_dim=512"),
        ("opt", {"layerdrop": 0.1, "ffn_dim": 40}, "layerdrop=0.1"),
    ],
)
def test_what_is_refused(model_type, values, said):
    with pytest.raises(FlagError, match=said):
        config(model_type, **values)


def test_what_a_family_cannot_say_is_not_written():
    """A window or a norm that Llama lacks cannot be a Llama, nor a window in every second layer a Mistral."""
    model = config("gemma2", sliding_window=9)
    with pytest.raises(FlagError, match="--family=llama cannot express this model"):
        choose_family(model, (), "llama", {})
    with pytest.raises(FlagError, match=r"--family=mistral cannot express this model.*global_every"):
        choose_family(config("qwen2", layer_types=[FULL, WINDOW] * 2, use_sliding_window=True), (), "mistral", {})
    assert choose_family(model, (), None, {}).model_type == "gemma2"


def test_what_changes_nothing_is_no_obstacle():
    """Such as the sixth of four layers, the width of MLPs that no layer has, the original length of linear scaling."""
    gemma = config("gemma3_text", sliding_window=9)
    sixth = gemma.model_copy(update={"attention.global_every": 6, "attention.global_offset": 5})
    assert windows(choose_family(sixth, (), "gemma3_text", {}).config) == [9] * 4
    mixtral = config("mixtral", intermediate_size=20)
    wide = mixtral.model_copy(update={"mlp_dim": 40, "moe": mixtral.moe.model_copy(update={"mlp_dim": 20})})
    assert choose_family(wide, (), "mixtral", {}).config == mixtral
    llama = config("llama", rope_scaling={"type": "linear", "factor": 2})
    rope = llama.rope.model_copy(update={"original_length": 32})
    assert choose_family(llama.model_copy(update={"rope": rope}), (), "llama", {}).config == llama


def logits(checkpoint: Checkpoint, model: ModelConfig, params, expected, mesh) -> np.ndarray:
    """Returns the logits of a recorded batch, from a model sharded over the mesh."""
    with contextlib.ExitStack() as context:
        if mesh.size > 1:
            context.enter_context(jax.set_mesh(mesh))
            context.enter_context(nn.logical_axis_rules(RULES))
        forward = jax.jit(lambda p, batch: LanguageModel(model).apply({"params": p}, batch, method="outputs")["logits"])
        return np.asarray(forward(params, features(expected)))


@pytest.mark.parametrize(
    ("sizes", "dispatch"),
    [({"expert": 2, "data": 4}, "auto"), ({"expert": 2, "tensor": 2}, "auto"), ({}, "dense"), ({}, "ragged")],
)
def test_experts_over_a_mesh(sizes, dispatch):
    """For every sharding of the experts and every dispatch of tokens, the logits equal those of transformers."""
    folder = FOLDER / "mixtral"
    checkpoint, expected = Checkpoint(folder), load_file(folder / "expected.safetensors")
    known = checkpoint.description.config
    model = known.model_copy(update={"moe": known.moe.model_copy(update={"dispatch": dispatch})})
    devices = jax.devices() if sizes else jax.devices()[:1]
    mesh = make_mesh(ParallelConfig(**sizes), devices)
    params = checkpoint.params(model, mesh)
    kernels = params["backbone"]["stack"]["layers"]["moe"]["up"]["kernel"]
    layers, experts, width, mlp = kernels.shape
    ways, tensor = sizes.get("expert", 1), sizes.get("tensor", 1)
    for shard in kernels.addressable_shards:
        assert shard.data.shape == (layers, experts // ways, width, mlp // tensor)
    assert len({str(shard.index) for shard in kernels.addressable_shards}) == ways * tensor
    real = expected["mask"].astype(bool)
    found = logits(checkpoint, model, params, expected, mesh)
    np.testing.assert_allclose(found[real], expected["out.logits"][real], rtol=0, atol=2e-5)


def test_a_split_model_is_written_whole(tmp_path):
    """Export from eight devices with sharded experts gives the imported tensors."""
    checkpoint = Checkpoint(FOLDER / "mixtral")
    description = checkpoint.description
    params = checkpoint.params(description.config, make_mesh(ParallelConfig(expert=2, fsdp=2, tensor=2)))
    export(description, description.config, params, tmp_path / "out")
    before, after = (load_file(f / "model.safetensors") for f in (FOLDER / "mixtral", tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name], err_msg=name)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_alternating_layers_are_the_same_stacked_or_not(name):
    """One table is used for scanned and for unrolled layers."""
    checkpoint = Checkpoint(FOLDER / name)
    description, mesh = checkpoint.description, make_mesh(ParallelConfig(), jax.devices()[:1])
    unrolled = description.config.model_copy(update={"scan_layers": False})
    params = [checkpoint.params(c, mesh) for c in (description.config, unrolled)]
    assert len(jax.tree.leaves(params[0])) < len(jax.tree.leaves(params[1]))
    stacked, single = (
        dict(tensors_of(description, c, p)) for c, p in zip((description.config, unrolled), params, strict=True)
    )
    assert stacked.keys() == single.keys()
    for key, tensor in stacked.items():
        np.testing.assert_array_equal(tensor, single[key], err_msg=key)
    expected = load_file(FOLDER / name / "expected.safetensors")
    real = expected["mask"].astype(bool)
    found = logits(checkpoint, unrolled, params[1], expected, mesh)
    np.testing.assert_allclose(found[real], expected["out.logits"][real], rtol=0, atol=2e-5)


def test_heads_differ_from_the_width():
    """The width of heads is read from the file, and is the embedding's share of a head if the file has none."""
    assert config("llama", head_dim=10).width_of_head == 10
    assert config("llama").width_of_head == 6
    assert config("gemma").width_of_head == 256
    shapes = jax.tree.leaves(abstract_params(config("gemma"), ()))
    assert (4, 4, 256, 24) in {leaf.shape for leaf in shapes}
