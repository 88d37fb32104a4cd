"""Writes a model as a GGUF file, the format of llama.cpp, by the library `gguf`.

The tensors are those of the Hugging Face checkpoint of the same model; their names are translated by the library's own
table. What llama.cpp computes differently from the checkpoint's class is changed here: see `_tensor`.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.interop.checkpoint import Description
from lmjax.interop.export import tensors_of
from lmjax.interop.gguf_vocabulary import write_vocabulary
from lmjax.model.config import ModelConfig
from lmjax.model.positions.rope import rope_frequencies
from lmjax.objectives.prompts import PromptFormat
from lmjax.paths import new_folder

FILE = "model.gguf"
# --dtype -> the library's names of the type of a tensor and of the file.
DTYPES = {
    "float32": ("F32", "ALL_F32"),
    "float16": ("F16", "MOSTLY_F16"),
    "bfloat16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
    "q4_0": ("Q4_0", "MOSTLY_Q4_0"),
}
# Tensors of these parts stay in float32: llama.cpp adds or multiplies them elementwise.
_EXACT = ("norm", "position_embd", "token_types", "attn_rel_b")
# Tensors that llama.cpp has no use for: heads of encoders, and copies of the token table.
_SKIPPED = ("cls.", "pooler.", "encoder.embed_tokens.", "decoder.embed_tokens.")


class _Form(NamedTuple):
    """How llama.cpp knows a family.

    Attributes:
        architecture: llama.cpp's name.
        mlps: the activations that it has for this architecture.
        window: the layers without a window there, as (every, offset); None: no layer has one.
        scalings: of rotary positions.
    """

    architecture: str
    mlps: tuple[str, ...]
    window: tuple[int, int] | None = None
    scalings: tuple[str, ...] = ("none", "linear", "yarn")


FORMS = {
    "llama": _Form("llama", ("swiglu",), scalings=("none", "linear", "yarn", "llama3")),
    "mistral": _Form("llama", ("swiglu",), scalings=("none", "linear", "yarn", "llama3")),
    "qwen2": _Form("qwen2", ("swiglu",)),
    "qwen3": _Form("qwen3", ("swiglu",)),
    "gemma": _Form("gemma", ("geglu_new",)),
    "gemma2": _Form("gemma2", ("geglu_new",), (2, 1)),
    "gemma3_text": _Form("gemma3", ("geglu_new",), (6, 5)),
    "gpt2": _Form("gpt2", ("gelu_new",)),
    "t5": _Form("t5", ("relu", "geglu_new")),
    "bert": _Form("bert", ("gelu",)),
}


def check_installed() -> None:
    """Raises FlagError if the library is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise FlagError("--format=gguf needs gguf, which is not installed; pip install 'lmjax[gguf]'")


def check_expressible(description: Description) -> None:
    """Raises FlagError if llama.cpp cannot compute what a model computes."""
    config, form = description.config, FORMS.get(description.model_type)
    if form is None:
        raise FlagError(
            f"--format=gguf: lmjax writes {', '.join(FORMS)}, and this model goes out as {description.model_type};"
            " give --format=stablehlo, or a checkpoint of Hugging Face"
        )
    attention = config.attention
    every, offset = form.window or (1, 0)
    theirs = [i % every == offset for i in range(config.num_layers)]
    wide = attention.window is None or attention.window >= config.max_length
    windows = not wide and theirs != [attention.is_global(i) for i in range(config.num_layers)]
    usual = 1.0 if description.model_type == "t5" else config.width_of_head**-0.5
    broken = {
        f"mlp={config.mlp!r}": config.mlp not in form.mlps,
        f"rope.scaling={config.rope.scaling!r}": config.rope.scaling not in form.scalings,
        f"attention.window={attention.window}": windows or (wide and form.window is not None),
        f"attention.scale={config.score_scale}": abs(config.score_scale / usual - 1) > 1e-6,
        f"rope.local_theta={config.rope.local_theta}": config.rope.local_theta not in (None, 10_000.0),
        f"heads={list(description.heads)}": config.family.causal and bool(description.heads),
    }
    if odd := [field for field, is_broken in broken.items() if is_broken]:
        raise FlagError(f"--format=gguf: llama.cpp's {form.architecture} has no {odd[0]}; give --format=stablehlo")


def write_gguf(
    description: Description,
    config: ModelConfig,
    params: Any,
    tokenizer: Vocabulary,
    prompts: PromptFormat,
    folder: pathlib.Path,
    dtype: str,
) -> list[str]:
    """Writes `model.gguf` into a new folder; returns the names of tensors that are not in the type asked for.

    Args:
        description: from `choose_family`, checked by `check_expressible`.
        config: of the model, as trained: its layers may be stacked.
        params: plain arrays.
        tokenizer: of the model.
        prompts: the special tokens around a text.
        folder: appears only once it is complete.
        dtype: a key of DTYPES, of matrices; norms and biases are float32.

    Raises:
        FlagError: llama.cpp has no such tokenizer, or a tensor has no name there.
    """
    import gguf

    form, causal = FORMS[description.model_type], config.family.causal
    wanted, file_type = DTYPES[dtype]
    table = gguf.get_tensor_name_map(
        next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == form.architecture),
        max(config.num_layers, config.side_layers(True)),
    )
    others = []
    with new_folder(folder) as temporary:
        writer = gguf.GGUFWriter(temporary / FILE, form.architecture)
        writer.add_file_type(gguf.LlamaFileType[file_type])
        _settings(writer, description, prompts)
        write_vocabulary(writer, tokenizer, prompts, config.vocab_size, causal=causal)
        for name, tensor in tensors_of(description, config, params):
            short = name.removeprefix("bert.")
            if short.startswith(_SKIPPED):
                continue
            theirs = table.get_name(short, try_suffixes=(".weight", ".bias"))
            if theirs is None:
                raise FlagError(f"--format=gguf: llama.cpp's {form.architecture} has no tensor {name}")
            array = _tensor(description, short, np.asarray(tensor, np.float32))
            kind = "F32" if array.ndim == 1 or any(part in theirs for part in _EXACT) else wanted
            if kind.startswith("Q") and array.shape[-1] % 32:
                kind = "F16"
                others.append(theirs)
            _add(writer, theirs, array, kind)
        if config.rope.scaling == "llama3" and description.model_type in ("llama", "mistral"):
            _add(writer, "rope_freqs.weight", _rope_factors(config), "F32")
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            step()
        writer.close()
    return others


def _add(writer: Any, name: str, array: np.ndarray, kind: str) -> None:
    """Adds a float32 tensor in the type `kind`."""
    import gguf

    quantised = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(array), quantised), raw_dtype=quantised)


def _rope_factors(config: ModelConfig) -> np.ndarray:
    """Returns by how much llama.cpp divides each frequency of rotary positions, float32 `[rotated / 2]`."""
    plain = config.rope.theta ** -(np.arange(0, config.rotated_dim, 2) / config.rotated_dim)
    return (plain / rope_frequencies(config, config.max_length)[0]).astype(np.float32)


def _tensor(description: Description, name: str, tensor: np.ndarray) -> np.ndarray:
    """Returns a tensor of a checkpoint as llama.cpp computes with it.

    Llama: queries and keys are rotated in neighbouring pairs there, and in halves here. Gemma: the factor of a norm is
    stored, and not its difference from 1. GPT-2: all matrices are [outputs, inputs].
    """
    kind, config = description.model_type, description.config
    if FORMS[kind].architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_heads if ".q_proj." in name else config.kv_heads
        halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    if kind.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + 1
    if kind == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return tensor.T
    return tensor


def _settings(writer: Any, description: Description, prompts: PromptFormat) -> None:
    """Writes the sizes of a model and what its layers do."""
    config, kind = description.config, description.model_type
    add: dict[Callable[[Any], None], Any] = {
        writer.add_name: description.model_type,
        writer.add_vocab_size: config.vocab_size,
        writer.add_context_length: config.max_length,
        writer.add_embedding_length: config.embed_dim,
        writer.add_feed_forward_length: config.mlp_dim,
        writer.add_block_count: config.num_layers,
        writer.add_head_count: config.num_heads,
        writer.add_head_count_kv: config.kv_heads,
    }
    if config.norm == "rmsnorm":
        add[writer.add_layer_norm_rms_eps] = config.norm_epsilon
    if config.norm == "layernorm" or kind == "t5":
        add[writer.add_layer_norm_eps] = config.norm_epsilon
    if kind not in ("gpt2", "bert"):
        add |= {writer.add_key_length: config.width_of_head, writer.add_value_length: config.width_of_head}
    if "rope" in config.scheme(config.family.causal).fields:
        add |= {writer.add_rope_freq_base: config.rope.theta, writer.add_rope_dimension_count: config.rotated_dim}
        add |= _scaling(writer, config)
    if config.attention.window is not None:
        add[writer.add_sliding_window] = config.attention.window
    caps = {
        writer.add_attn_logit_softcapping: config.attention.softcap,
        writer.add_final_logit_softcapping: config.head.softcap,
    }
    add |= {method: cap for method, cap in caps.items() if cap is not None}
    if kind == "t5":
        add |= {
            writer.add_relative_attn_buckets_count: config.relative.buckets,
            writer.add_decoder_block_count: config.side_layers(True),
            writer.add_decoder_start_token_id: prompts.start[0] if prompts.start else 0,
        }
    if kind == "bert":
        import gguf

        add |= {writer.add_causal_attention: False, writer.add_pooling_type: gguf.PoolingType.NONE}
    for method, value in add.items():
        method(value)


def _scaling(writer: Any, config: ModelConfig) -> Mapping[Callable[[Any], None], Any]:
    """Returns the settings of a scaling of rotary positions; that of llama3 is a tensor."""
    import gguf

    rope = config.rope
    if rope.scaling not in ("linear", "yarn"):
        return {}
    kind = gguf.RopeScalingType.LINEAR if rope.scaling == "linear" else gguf.RopeScalingType.YARN
    found: dict[Callable[[Any], None], Any] = {
        writer.add_rope_scaling_type: kind,
        writer.add_rope_scaling_factor: rope.factor,
    }
    if rope.scaling == "yarn":
        found[writer.add_rope_scaling_orig_ctx_len] = rope.original_length or config.max_length
        found[writer.add_rope_scaling_yarn_beta_fast] = rope.beta_fast
        found[writer.add_rope_scaling_yarn_beta_slow] = rope.beta_slow
        if rope.attention_factor is not None:
            # llama.cpp multiplies by 0.1 ln(factor) + 1 besides.
            found[writer.add_rope_scaling_attn_factors] = rope.attention_factor / (0.1 * np.log(rope.factor) + 1)
    return found
